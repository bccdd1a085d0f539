// What the kernels of slot_attention share: where a span leaves its part of the result, in units of log2.
#pragma once
#include "device.cuh"
#include "slot_attention.h"

namespace perilune {
namespace cuda {

constexpr float kLog2e = 1.44269504f;

// Of one (token, head, span) in the workspace: maximum, sum, then the weighted values. Scores are counted in log2.
__device__ inline float* place_of(float* workspace, const SlotAttention& args, int64_t token, int64_t head,
                                  int64_t span) {
  int64_t spans = (args.capacity + kSpan - 1) / kSpan;
  return workspace + ((token * args.heads + head) * spans + span) * (args.head_size + 2);
}

// Whether the tensor cores take these shapes; an address may be any. Larger heads have no place in the registers.
inline bool by_products(const SlotAttention& args) {
  return args.dtype == Dtype::bfloat16 && args.head_size % 8 == 0 && args.head_size <= 128;
}

// The spans of all tokens, in bfloat16 by tensor cores.
void attend_by_products(const SlotAttention& args, int64_t slots, float* workspace, Stream stream);

}  // namespace cuda
}  // namespace perilune
