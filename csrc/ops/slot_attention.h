// Attention of single tokens over a key-value cache [S, C, Hkv, d]: rows 0..position of the token's slot.
#pragma once
#include <cstdint>

#include "head.h"

namespace perilune {

constexpr int64_t kLargestHeadSize = 256;

struct SlotAttention {
  const void* query;      // [F, H, d]
  const void* keys;       // [S, C, Hkv, d]
  const void* values;     // [S, C, Hkv, d]
  const int64_t* slot;      // [F]
  const int64_t* position;  // [F], below 0: the result is 0
  void* out;              // [F, H, d]
  int64_t tokens, heads, shared_heads, head_size, capacity;
  float scale;
  Dtype dtype;
};

void slot_attention(const SlotAttention& args, int threads);

}  // namespace perilune
