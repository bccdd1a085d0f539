// How every launcher of this folder answers, and what it is given besides its arguments.
#pragma once
#include <cstdint>

#include "../ops/head.h"

namespace perilune {
namespace cuda {

// What went wrong with a launch, in the driver's words; null: nothing did.
typedef const char* Failure;

// A cudaStream_t, so that callers need no header of the toolkit.
typedef void* Stream;

}  // namespace cuda
}  // namespace perilune
