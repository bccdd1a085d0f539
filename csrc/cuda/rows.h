// Launchers of the ops on rows: the arguments and promises of ops/{rms_norm,rotary,gated_silu}.h, with pointers into
// the device's memory. A slot or position out of range stores nothing, and its query is NaN.
#pragma once
#include "../ops/gated_silu.h"
#include "../ops/rms_norm.h"
#include "../ops/rotary.h"
#include "launch.h"

namespace perilune {
namespace cuda {

Failure rms_norm(const RmsNorm& args, Stream stream);
Failure rotate_and_store(const Rotary& args, int64_t slots, Stream stream);
Failure gated_silu(const GatedSilu& args, Stream stream);

}  // namespace cuda
}  // namespace perilune
