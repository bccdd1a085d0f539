// Attention over packed rows: schemas, and tensors to pointers on the CPU. Shapes and dtypes were checked in
// engine/ops; the values of the spans are checked here.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "../ops/packed_attention.h"
#include "tensors.h"

namespace {

using at::Tensor;
using perilune::Span;
using perilune::with_unit_stride;

perilune::Rows rows_of(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1)};
}

// Each span follows the one before, and each context ends before its span begins: then nothing is read or written
// outside the row.
void check_spans(const Tensor& spans, int64_t tokens) {
  TORCH_CHECK_VALUE(spans.device().is_cpu(), "spans: expected a tensor on the CPU, got one on ", spans.device());
  const int32_t* data = spans.const_data_ptr<int32_t>();
  int64_t end = 0;
  for (int64_t i = 0; i < spans.size(0); ++i) {
    int64_t start = data[i * 4], length = data[i * 4 + 1], seen = data[i * 4 + 2], context = data[i * 4 + 3];
    TORCH_CHECK_VALUE(start == end && length >= 0, "spans: expected span ", i, " to start at ", end,
                      " with a length of at least 0, got ", start, " and ", length);
    end += length;
    TORCH_CHECK_VALUE(context >= 0 && (context == 0 || (seen >= 0 && seen + context <= start)),
                      "spans: expected the context of span ", i, " in 0..", start, ", got ", seen, "..",
                      seen + context);
  }
  TORCH_CHECK_VALUE(end == tokens, "spans: expected to cover ", tokens, " tokens, got ", end);
}

// The tensors must outlive the result.
perilune::PackedAttention attention_of(const Tensor& query, const Tensor& key, const Tensor& value,
                                       const Tensor& spans, double scale) {
  check_spans(spans, query.size(0));
  return {rows_of(query), rows_of(key), rows_of(value), static_cast<const Span*>(spans.const_data_ptr()),
          spans.size(0), query.size(0), query.size(1), key.size(1), query.size(2), float(scale),
          perilune::dtype_of(query, "query")};
}

std::tuple<Tensor, Tensor> packed_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                            const Tensor& spans, double scale) {
  Tensor q = with_unit_stride(query), k = with_unit_stride(key), v = with_unit_stride(value);
  Tensor parts = spans.contiguous();
  auto args = attention_of(q, k, v, parts, scale);
  Tensor out = at::empty(q.sizes(), q.options());
  Tensor lse = at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat));
  perilune::packed_attention(args, out.mutable_data_ptr(), lse.mutable_data_ptr<float>(), at::get_num_threads());
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> packed_attention_gradient(const Tensor& gradient, const Tensor& query,
                                                             const Tensor& key, const Tensor& value,
                                                             const Tensor& out, const Tensor& lse,
                                                             const Tensor& spans, double scale) {
  Tensor g = with_unit_stride(gradient), q = with_unit_stride(query), k = with_unit_stride(key);
  Tensor v = with_unit_stride(value), o = with_unit_stride(out), parts = spans.contiguous(), sums = lse.contiguous();
  auto args = attention_of(q, k, v, parts, scale);
  Tensor d_query = at::empty(q.sizes(), q.options());
  Tensor d_key = at::empty(k.sizes(), k.options()), d_value = at::empty(v.sizes(), v.options());
  perilune::packed_attention_gradient({args, rows_of(g), rows_of(o), sums.const_data_ptr<float>(),
                                       d_query.mutable_data_ptr(), d_key.mutable_data_ptr(),
                                       d_value.mutable_data_ptr()},
                                      at::get_num_threads());
  return {d_query, d_key, d_value};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(perilune, m) {
  m.def("packed_attention(Tensor query, Tensor key, Tensor value, Tensor spans, float scale) -> (Tensor, Tensor)");
  m.def("packed_attention_gradient(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,"
        " Tensor spans, float scale) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(perilune, CPU, m) {
  m.impl("packed_attention", &packed_attention);
  m.impl("packed_attention_gradient", &packed_attention_gradient);
}
