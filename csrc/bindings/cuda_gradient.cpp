// Gradients for the logits of a head, and the ops on logits that exist.
#include <ATen/ops/empty_like.h>

#include <tuple>

#include "../cuda/logits.h"
#include "cuda_products.h"

namespace perilune {
namespace {

constexpr int64_t kProductLogits = 1 << 25;  // of one product by the library

// Rows of the result lie a multiple of eight tokens apart: the products that take it are slow with others. What lies
// between them is 0, for a library may multiply it by the zeros that it fills up with itself.
Tensor logit_gradient(const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor& statistics,
                      int64_t start) {
  Call call({{"hidden", hidden}, {"weight", weight}, {"target", target}, {"statistics", statistics}});
  Dtype dtype = dtype_of(hidden, "hidden");
  bool fused = fused_takes(hidden);
  Tensor x = settled(hidden, fused), w = settled(weight, fused);
  Tensor y = target.contiguous(), columns = statistics.contiguous();
  int64_t tokens = x.size(0), rows = w.size(0);
  int64_t pitch = (tokens + 7) / 8 * 8;
  Tensor filled = at::empty({rows, pitch}, hidden.options());
  Tensor out = filled.narrow(1, 0, tokens);
  if (!tokens) return out;
  if (fused) {
    Tensor workspace = at::empty({cuda::fused_workspace(tokens)}, hidden.options().dtype(at::kFloat));
    Call::check(cuda::fused_gradient(rows_of(x, 0, tokens, w),
                                     {y.const_data_ptr<int64_t>(), columns.const_data_ptr<float>(),
                                      filled.mutable_data_ptr(), pitch, start, workspace.mutable_data_ptr<float>()},
                                     call.stream()), "fused_gradient");
    return out;
  }
  if (pitch != tokens) filled.zero_();
  int64_t step = std::min(rows, std::max<int64_t>(128, kProductLogits / pitch / 128 * 128));
  Tensor logits = at::empty({step, pitch}, hidden.options().dtype(at::kFloat)).narrow(1, 0, tokens), states = x.t();
  char* to = static_cast<char*>(out.mutable_data_ptr());
  for (int64_t row = 0; row < rows; row += step) {
    int64_t here = std::min(step, rows - row);
    Tensor part = logits.narrow(0, 0, here);
    multiply(part, w.narrow(0, row, here), states);
    Call::check(cuda::gradient({logits.const_data_ptr<float>(), y.const_data_ptr<int64_t>(),
                                columns.const_data_ptr<float>(), to + row * pitch * int64_t(out.element_size()),
                                here, tokens, pitch, start + row, dtype}, call.stream()), "gradient");
  }
  return out;
}

cuda::Logits logits_of(const Tensor& logits, const Tensor& target) {
  return {logits.const_data_ptr(), logits.stride(0), logits.size(0), logits.size(1),
          dtype_of(logits, "logits"), target.const_data_ptr<int64_t>()};
}

std::tuple<Tensor, Tensor, Tensor> logits_logprob(const Tensor& logits, const Tensor& target, const Tensor& scale) {
  Call call({{"logits", logits}, {"target", target}, {"scale", scale}});
  Tensor z = with_unit_stride(logits), y = target.contiguous(), s = scale.contiguous();
  Tensor logprob = at::empty({z.size(0)}, logits.options().dtype(at::kFloat));
  Tensor entropy = at::empty_like(logprob), lse = at::empty_like(logprob);
  Call::check(cuda::logits_logprob(logits_of(z, y), s.const_data_ptr<float>(), logprob.mutable_data_ptr<float>(),
                                   entropy.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>(), call.stream()),
              "logits_logprob");
  return {logprob, entropy, lse};
}

Tensor logits_gradient(const Tensor& logits, const Tensor& target, const Tensor& statistics) {
  Call call({{"logits", logits}, {"target", target}, {"statistics", statistics}});
  Tensor z = with_unit_stride(logits), y = target.contiguous();
  Tensor columns = statistics.contiguous(), out = at::empty(z.sizes(), logits.options());
  Call::check(cuda::logits_gradient(logits_of(z, y), columns.const_data_ptr<float>(), out.mutable_data_ptr(),
                                    call.stream()), "logits_gradient");
  return out;
}

}  // namespace
}  // namespace perilune

TORCH_LIBRARY_IMPL(perilune, CUDA, m) {
  m.impl("logit_gradient", &perilune::logit_gradient);
  m.impl("logits_logprob", &perilune::logits_logprob);
  m.impl("logits_gradient", &perilune::logits_gradient);
}
