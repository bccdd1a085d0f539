// silu(gate) * up of rows that hold both halves.
#pragma once
#include "head.h"

namespace perilune {

struct GatedSilu {
  const void* gate_up;  // [F, 2 * I]
  void* out;            // [F, I]
  int64_t rows, width;  // F, I
  Dtype dtype;
};

void gated_silu(const GatedSilu& args, int threads);

}  // namespace perilune
