// Rotary embedding of query and key heads; keys and values go straight into a key-value cache [S, C, Hkv, d].
#pragma once
#include "head.h"

namespace perilune {

struct Rotary {
  const void* fused;        // [F, H + 2 * Hkv, d]: query, key and value heads; d is even
  const void* cosine;       // [at least C, d]
  const void* sine;         // [at least C, d]
  const int64_t* slot;      // [F]
  const int64_t* position;  // [F], below 0: nothing is stored, the query turns as at position 0
  void* keys;               // [S, C, Hkv, d]
  void* values;             // [S, C, Hkv, d]
  void* query;              // [F, H, d]
  int64_t tokens, heads, shared_heads, head_size, capacity;
  Dtype dtype;
};

void rotate_and_store(const Rotary& args, int threads);

}  // namespace perilune
