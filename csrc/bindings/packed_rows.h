// What the bindings of packed rows share on every device: the type of a real tensor, tensors that may be left out, the
// size of a token.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "../ops/segments.h"

namespace perilune {

inline Real real_of(const at::Tensor& tensor, const char* argument) {
  if (tensor.scalar_type() == at::kFloat) return Real::float32;
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kDouble, argument, ": expected float32 or float64, got ",
                    tensor.scalar_type());
  return Real::float64;
}

inline const void* data_of(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

inline at::Tensor dense(const std::optional<at::Tensor>& tensor) {
  return tensor && tensor->defined() ? tensor->contiguous() : at::Tensor();
}

// Bytes of one token of [..., ...] whose first `axes` axes count tokens.
inline int64_t token_bytes(const at::Tensor& tensor, int64_t axes) {
  int64_t bytes = tensor.element_size();
  for (int64_t axis = axes; axis < tensor.dim(); ++axis) bytes *= tensor.size(axis);
  return bytes;
}

}  // namespace perilune
