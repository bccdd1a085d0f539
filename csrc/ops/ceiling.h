// What the processor can multiply when nothing else is asked of it: the measure of the other kernels.
#pragma once
#include <cstdint>

namespace perilune {

// Products from registers alone, at the level in use, on all threads at once; the floating-point operations done.
int64_t cpu_ceiling(int64_t rounds, int threads);

}  // namespace perilune
