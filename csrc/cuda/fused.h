// Products of hidden states and a head whose logits are reduced, or turned into gradients, before they leave the
// registers. For bfloat16 on compute capability 9.0; elsewhere a library multiplies and head.h does the rest.
//
// Slabs are of 256 vocabulary entries here. A row's values depend neither on the other rows nor on its place.
#pragma once
#include "head.h"

namespace perilune {
namespace cuda {

constexpr int64_t kFusedSlab = 256;

inline int64_t fused_slabs_of(int64_t vocabulary) { return (vocabulary + kFusedSlab - 1) / kFusedSlab; }

// Whether the current device takes them, and the build has them.
bool fused_runs();

// hidden [tokens, width] and weight [vocabulary, width] in bfloat16, contiguous, on 16 bytes; width a multiple of 8.
struct FusedHead {
  const void *hidden, *weight;
  int64_t tokens, width, vocabulary;
};

// The partial sums of slabs first..first + slabs - 1 into partials [tokens, all slabs], and as in head.h the logits of
// targets into chosen; target may be null. With logits: the raw ones as well, rows `pitch` apart, from the first
// entry of slab `first`; pitch a multiple of 2.
struct FusedStats {
  const float* scale;  // [tokens], below 0 or not finite: the sums are NaN
  const int64_t* target;
  Partial* partials;
  float* chosen;
  float* logits;
  int64_t pitch, first, slabs;
};
Failure fused_stats(const FusedHead& head, const FusedStats& args, Stream stream);

// Floats of workspace that fused_gradient takes.
inline int64_t fused_workspace(int64_t tokens) { return (tokens + 255) / 256 * 256 * 4; }

// As gradient of head.h, from the head's own rows: weight [vocabulary, width] are the entries start..start +
// vocabulary - 1. Rows of out lie `pitch` apart, a multiple of 8, and what is between them becomes 0.
struct FusedGradient {
  const int64_t* target;
  const float* statistics;
  void* out;
  int64_t pitch, start;
  float* workspace;
};
Failure fused_gradient(const FusedHead& head, const FusedGradient& args, Stream stream);

}  // namespace cuda
}  // namespace perilune
