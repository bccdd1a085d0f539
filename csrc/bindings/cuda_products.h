// What the CUDA bindings over an output head share: which way a head goes, and products by the library.
#pragma once
#include <ATen/Context.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "../cuda/fused.h"
#include "cuda.h"

namespace perilune {

extern bool fused_wanted;

// By dtype, width and device alone, so that all ops over one head go the same way.
inline bool fused_takes(const Tensor& hidden) {
  int64_t width = hidden.size(1);
  return fused_wanted && hidden.scalar_type() == at::kBFloat16 && width > 0 && width % 8 == 0 && cuda::fused_runs();
}

inline cuda::FusedHead rows_of(const Tensor& hidden, int64_t first, int64_t count, const Tensor& weight) {
  int64_t width = hidden.size(1);
  auto* from = static_cast<const char*>(hidden.const_data_ptr()) + first * width * hidden.element_size();
  return {from, weight.const_data_ptr(), count, width, weight.size(0)};
}

// out = left @ right in fp32; fp32 factors are not shortened to tf32 whatever the process allows.
inline void multiply(Tensor& out, const Tensor& left, const Tensor& right) {
  at::NoTF32Guard whole_digits;
  if (left.scalar_type() == at::kFloat) at::mm_out(out, left, right);
  else at::mm_out(out, left, right, at::kFloat);
}

// Contiguous, and on a boundary: copies of tiles need 16 bytes; the library's choice of a kernel may depend on more.
inline Tensor settled(const Tensor& tensor, bool fused) {
  Tensor whole = tensor.contiguous();
  return reinterpret_cast<uintptr_t>(whole.const_data_ptr()) % (fused ? 16 : 256) == 0 ? whole : whole.clone();
}

}  // namespace perilune
