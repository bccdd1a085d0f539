// What the bindings share: tensors as kernels take them, and checks of what must be read from memory on a CPU.
#pragma once
#include <ATen/core/Tensor.h>

#include <cmath>
#include <optional>

#include "../ops/head.h"

namespace perilune {

inline Dtype dtype_of(const at::Tensor& tensor, const char* argument) {
  if (tensor.scalar_type() == at::kBFloat16) return Dtype::bfloat16;
  TORCH_CHECK_VALUE(tensor.scalar_type() == at::kFloat, argument, ": expected bfloat16 or float32, got ",
                    tensor.scalar_type());
  return Dtype::float32;
}

inline at::Tensor with_unit_stride(const at::Tensor& tensor) {
  return tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

// Tokens are the entries of `rows`, or all rows of `hidden`. The tensors must outlive the result.
inline Head head_of(const at::Tensor& hidden, const at::Tensor& weight,
                    const std::optional<at::Tensor>& rows = std::nullopt) {
  return {hidden.const_data_ptr(),
          weight.const_data_ptr(),
          hidden.stride(0),
          rows ? rows->size(0) : hidden.size(0),
          hidden.size(1),
          weight.size(0),
          dtype_of(hidden, "hidden"),
          rows ? rows->const_data_ptr<int64_t>() : nullptr};
}

inline void check_range(const at::Tensor& values, const char* argument, int64_t high) {
  const int64_t* data = values.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < values.numel(); ++i)
    TORCH_CHECK_VALUE(data[i] >= 0 && data[i] < high, argument, ": expected values in 0..", high - 1, ", got ",
                      data[i]);
}

// Factors of the logits: a number below 0 would turn the order of the tokens around.
inline void check_scale(const at::Tensor& scale) {
  const float* data = scale.const_data_ptr<float>();
  for (int64_t i = 0; i < scale.numel(); ++i)
    TORCH_CHECK_VALUE(std::isfinite(data[i]) && data[i] >= 0,
                      "inverse_temperature: expected finite values of at least 0, got ", data[i]);
}

}  // namespace perilune
