// Causal attention over spans of packed rows, and its gradient.
//
// A span (start, length, context_start, context_length) is a run of tokens. Each sees its context whole, and of
// its own span itself and what stands before it. Spans follow each other and cover the row; a context ends before
// its span begins.
#pragma once
#include <cstdint>

#include "head.h"

namespace perilune {

struct Span {
  int32_t start, length, context_start, context_length;
};

// [T, heads, d]: the d values of a head side by side, strides in values.
struct Rows {
  const void* data;
  int64_t token_stride, head_stride;
};

struct PackedAttention {
  Rows query;             // [T, H, d]
  Rows key, value;        // [T, Hkv, d]
  const Span* spans;
  int64_t num_spans, tokens, heads, shared_heads, head_size;
  float scale;            // not below 0
  Dtype dtype;
};

struct PackedGradient {
  PackedAttention forward;
  Rows gradient;          // [T, H, d] of the loss for the output
  Rows out;               // [T, H, d]
  const float* lse;       // [T, H]
  void *d_query, *d_key, *d_value;  // contiguous
};

// out [T, H, d] contiguous; lse [T, H] is the logarithm of the sum of exp(scale * query . key).
void packed_attention(const PackedAttention& args, void* out, float* lse, int threads);
void packed_attention_gradient(const PackedGradient& args, int threads);

}  // namespace perilune
