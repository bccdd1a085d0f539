// Log-probabilities from logits that exist: tensors in, pointers out.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../ops/logits_logprob.h"
#include "tensors.h"

namespace {

using at::Tensor;
using perilune::check_range;
using perilune::with_unit_stride;

perilune::Logits logits_of(const Tensor& logits) {
  return {logits.const_data_ptr(), logits.stride(0), logits.size(0), logits.size(1),
          perilune::dtype_of(logits, "logits")};
}

std::tuple<Tensor, Tensor, Tensor> logits_logprob(const Tensor& logits, const Tensor& target, const Tensor& scale) {
  Tensor z = with_unit_stride(logits), y = target.contiguous(), s = scale.contiguous();
  check_range(y, "target", z.size(1));
  perilune::check_scale(s);
  Tensor logprob = at::empty({z.size(0)}, s.options()), entropy = at::empty_like(logprob);
  Tensor lse = at::empty_like(logprob);
  perilune::logits_logprob(logits_of(z), y.const_data_ptr<int64_t>(), s.const_data_ptr<float>(),
                           logprob.mutable_data_ptr<float>(), entropy.mutable_data_ptr<float>(),
                           lse.mutable_data_ptr<float>(), at::get_num_threads());
  return {logprob, entropy, lse};
}

Tensor logits_gradient(const Tensor& logits, const Tensor& target, const Tensor& statistics) {
  Tensor z = with_unit_stride(logits), y = target.contiguous();
  Tensor columns = statistics.contiguous();
  check_range(y, "target", z.size(1));
  Tensor out = at::empty(z.sizes(), z.options());
  perilune::logits_gradient(logits_of(z), y.const_data_ptr<int64_t>(), columns.const_data_ptr<float>(),
                            out.mutable_data_ptr(), at::get_num_threads());
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(perilune, CPU, m) {
  m.impl("logits_logprob", &logits_logprob);
  m.impl("logits_gradient", &logits_gradient);
}
