// Softmax statistics, draws and gradients of a block of raw logits that a matrix product left in memory.
//
// The vocabulary falls into slabs of 1024 by its size alone. One warp reduces one slab of one row, one warp merges
// the slabs of a row in fp64: a row's values depend neither on the other rows nor on its place. Index values that
// lie outside of their range read nothing and give NaN: a check on the host would have to wait for the device.
#pragma once
#include "launch.h"

namespace perilune {
namespace cuda {

constexpr int64_t kSlab = 1024;

inline int64_t slabs_of(int64_t vocabulary) { return (vocabulary + kSlab - 1) / kSlab; }

// Of one row and slab: the largest logit m, the sums of exp(z - m) and of exp(z - m)(z - m).
struct Partial {
  float maximum, sum, weighted, unused;
};

// The best candidate of one row and slab.
struct Draw {
  double score;
  int32_t index;
  float logit;
};

// Logits [rows, columns] of the vocabulary entries start..start + columns - 1; `start` is a multiple of kSlab,
// `logits` and `pitch` of 16 bytes. scale [rows], below 0 or not finite: the sums are NaN.
struct Block {
  const float* logits;
  int64_t pitch, rows, columns, start;
  const float* scale;
  int64_t slabs;  // of the whole vocabulary
};

// Into partials [rows, slabs]. With target [rows]: its logit into chosen [rows], which is left alone where the
// target lies outside of the block.
Failure stats(const Block& block, const int64_t* target, Partial* partials, float* chosen, Stream stream);

// Into draws [rows, slabs]: Gumbel-max under the noise of ops/sample.h; temperature 0 takes the largest logit.
Failure draw(const Block& block, const float* temperature, const int64_t* key, const int64_t* position, Draw* draws,
             Stream stream);

// The best of draws [rows, slabs]: its token and its logit. Ties go to the lowest index.
Failure finish_draw(const Draw* draws, int64_t rows, int64_t slabs, int64_t* token, float* chosen, Stream stream);

// Results [rows] of partials [rows, slabs]; entropy and lse may be null.
Failure finish(const Partial* partials, const float* chosen, int64_t rows, int64_t slabs, float* logprob,
               float* entropy, float* lse, Stream stream);

// 1 / temperature, 1 where it is 0, NaN where it is below 0.
Failure scales(const float* temperature, int64_t rows, float* scale, Stream stream);

// Gradient for raw logits [rows, tokens] (row: vocabulary entry start + row), into out of the given dtype; rows of
// both lie `pitch` values apart. statistics [7, tokens] as in ops/token_logprob.h.
struct LogitGradient {
  const float* logits;
  const int64_t* target;
  const float* statistics;
  void* out;
  int64_t rows, tokens, pitch, start;
  Dtype dtype;
};
Failure gradient(const LogitGradient& args, Stream stream);

}  // namespace cuda
}  // namespace perilune
