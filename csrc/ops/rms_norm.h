// Root-mean-square norm of rows, optionally of the sum of two. Rounded to the dtype before the weight is applied.
#pragma once
#include "head.h"

namespace perilune {

struct RmsNorm {
  const void* hidden;  // [F, D]
  const void* update;  // [F, D], added to `hidden` first; null: nothing is added
  const void* weight;  // [D]
  void* sum;           // [F, D], hidden + update rounded to the dtype; null without `update`
  void* out;           // [F, D]
  int64_t rows, width;
  float epsilon;
  Dtype dtype;
};

void rms_norm(const RmsNorm& args, int threads);

}  // namespace perilune
