// Launcher of ops/slot_attention.h. A slot or position out of range reads nothing and gives NaN.
#pragma once
#include "../ops/slot_attention.h"
#include "launch.h"

namespace perilune {
namespace cuda {

// Keys of a slot are shared out in spans of this many, by their own number: neighbours and capacity change no bit.
constexpr int64_t kSpan = 512;

inline int64_t spans_of(int64_t capacity) { return (capacity + kSpan - 1) / kSpan; }

// Floats of workspace: for every token, head and span a maximum, a sum and head_size weighted values.
inline int64_t attention_workspace(const SlotAttention& args) {
  return args.tokens * args.heads * spans_of(args.capacity) * (args.head_size + 2);
}

Failure slot_attention(const SlotAttention& args, int64_t slots, float* workspace, Stream stream);

}  // namespace cuda
}  // namespace perilune
