// What the bindings of heads and logits share: what must be read from memory to be checked.
#pragma once
#include <ATen/core/Tensor.h>

#include <cmath>

namespace perilune {

// Factors of the logits: a number below 0 would turn the order of the tokens around.
inline void check_scale(const at::Tensor& scale) {
  const float* data = scale.const_data_ptr<float>();
  for (int64_t i = 0; i < scale.numel(); ++i)
    TORCH_CHECK_VALUE(std::isfinite(data[i]) && data[i] >= 0,
                      "inverse_temperature: expected finite values of at least 0, got ", data[i]);
}

}  // namespace perilune
