// Rows chosen from the hidden states, and the gradient of the head as one op: tensors in, pointers out.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "../ops/head_gradient.h"
#include "../ops/token_logprob.h"
#include "tensors.h"

namespace {

using at::Tensor;
using perilune::check_range;
using perilune::head_of;
using perilune::with_unit_stride;

constexpr int64_t kRowsOfProduct = 4096;  // vocabulary rows of one library product

std::tuple<Tensor, Tensor, Tensor> token_logprob_rows(const Tensor& hidden, const Tensor& weight,
                                                      const Tensor& target, const Tensor& scale, const Tensor& rows,
                                                      bool want_entropy) {
  Tensor x = with_unit_stride(hidden), w = weight.contiguous(), y = target.contiguous(), s = scale.contiguous();
  Tensor chosen = rows.contiguous();
  check_range(chosen, "rows", x.size(0));
  check_range(y, "target", w.size(0));
  perilune::check_scale(s);
  auto options = hidden.options().dtype(at::kFloat);
  Tensor logprob = at::empty({y.size(0)}, options), entropy = at::empty_like(logprob), lse = at::empty_like(logprob);
  perilune::token_logprob(head_of(x, w, chosen), y.const_data_ptr<int64_t>(), s.const_data_ptr<float>(),
                          logprob.mutable_data_ptr<float>(), entropy.mutable_data_ptr<float>(),
                          lse.mutable_data_ptr<float>(), at::get_num_threads());
  if (!want_entropy) entropy.zero_();
  return {logprob, entropy, lse};
}

// A row that is listed more than once gets the sum of its gradients, in the order of the list.
Tensor scattered(const Tensor& gradient, const Tensor& hidden, const std::optional<Tensor>& rows) {
  if (!rows) return gradient.to(hidden.scalar_type());
  const int64_t* row = rows->const_data_ptr<int64_t>();
  std::vector<int64_t> first(size_t(hidden.size(0)), -1);
  float* values = gradient.mutable_data_ptr<float>();
  int64_t width = gradient.size(1);
  for (int64_t i = 0; i < gradient.size(0); ++i) {
    int64_t& earlier = first[row[i]];
    if (earlier < 0) earlier = i;
    else
      for (int64_t d = 0; d < width; ++d) values[earlier * width + d] += values[i * width + d];
  }
  Tensor out = at::zeros({hidden.size(0), width}, hidden.options());
  Tensor half = gradient.to(hidden.scalar_type());
  const char* from = static_cast<const char*>(half.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  size_t bytes = size_t(width) * hidden.element_size();
  for (int64_t i = 0; i < gradient.size(0); ++i)
    if (first[row[i]] == i) std::memcpy(to + row[i] * bytes, from + i * bytes, bytes);
  return out;
}

// Through the library's products, a few thousand rows of the vocabulary at a time; autocast does not shorten them.
void by_products(const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor& statistics,
                 Tensor* d_hidden, Tensor* d_weight) {
  c10::impl::ExcludeDispatchKeyGuard whole_digits(c10::autocast_dispatch_keyset);
  Tensor dense = hidden.contiguous();
  for (int64_t start = 0; start < weight.size(0); start += kRowsOfProduct) {
    Tensor rows = weight.narrow(0, start, std::min(kRowsOfProduct, weight.size(0) - start));
    Tensor gradient = at::empty({rows.size(0), dense.size(0)}, dense.options());
    perilune::logit_gradient(head_of(dense, rows), target.const_data_ptr<int64_t>(),
                             statistics.const_data_ptr<float>(), start, gradient.mutable_data_ptr(),
                             at::get_num_threads());
    if (d_hidden) d_hidden->add_(at::mm(gradient.t(), rows).to(at::kFloat));
    if (d_weight) d_weight->narrow(0, start, rows.size(0)).copy_(at::mm(gradient, dense));
  }
}

std::tuple<Tensor, Tensor> head_gradient(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                         const Tensor& statistics, const std::optional<Tensor>& rows,
                                         bool want_hidden, bool want_weight) {
  Tensor x = with_unit_stride(hidden), w = weight.contiguous(), y = target.contiguous();
  Tensor columns = statistics.contiguous();
  std::optional<Tensor> chosen = rows ? std::optional<Tensor>(rows->contiguous()) : std::nullopt;
  if (chosen) check_range(*chosen, "rows", x.size(0));
  check_range(y, "target", w.size(0));
  auto options = hidden.options().dtype(at::kFloat);
  Tensor d_hidden = at::zeros({want_hidden ? y.size(0) : 0, x.size(1)}, options);
  Tensor d_weight = at::empty({want_weight ? w.size(0) : 0, x.size(1)}, weight.options());
  bool done = perilune::head_gradient(head_of(x, w, chosen), y.const_data_ptr<int64_t>(),
                                      columns.const_data_ptr<float>(),
                                      want_hidden ? d_hidden.mutable_data_ptr<float>() : nullptr,
                                      want_weight ? d_weight.mutable_data_ptr() : nullptr, at::get_num_threads());
  if (!done)
    by_products(chosen ? x.index_select(0, *chosen) : x, w, y, columns, want_hidden ? &d_hidden : nullptr,
                want_weight ? &d_weight : nullptr);
  return {want_hidden ? scattered(d_hidden, x, chosen) : d_hidden.to(x.scalar_type()), d_weight};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(perilune, m) {
  m.def("token_logprob_rows(Tensor hidden, Tensor weight, Tensor target, Tensor scale, Tensor rows,"
        " bool want_entropy) -> (Tensor, Tensor, Tensor)");
  m.def("head_gradient(Tensor hidden, Tensor weight, Tensor target, Tensor statistics, Tensor? rows,"
        " bool want_hidden, bool want_weight) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(perilune, CPU, m) {
  m.impl("token_logprob_rows", &token_logprob_rows);
  m.impl("head_gradient", &head_gradient);
}
