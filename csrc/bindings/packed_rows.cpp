// The ops of packed rows on a CPU: schemas, checks of what must be read from memory, tensors to pointers. Shapes and
// dtypes were checked in engine/ops.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../ops/packed_rows.h"
#include "../ops/policy_gradient.h"
#include "../ops/segments.h"
#include "packed_rows.h"

namespace {

using at::Tensor;
using perilune::data_of;
using perilune::dense;
using perilune::Real;
using perilune::real_of;
using perilune::token_bytes;

// Why `segment_starts` refused.
void refuse_segment(const Tensor& segment, int64_t segments) {
  const int64_t* index = segment.const_data_ptr<int64_t>();
  auto [least, most] = std::minmax_element(index, index + segment.numel());
  TORCH_CHECK_VALUE(*least >= 0 && *most < segments, "segment: expected values in 0..", segments - 1, ", got ",
                    *least, "..", *most);
  int64_t t = std::is_sorted_until(index, index + segment.numel()) - index;
  TORCH_CHECK_VALUE(false, "segment: expected indices that never fall, got ", index[t], " after ", index[t - 1],
                    " at token ", t);
}

// The segments of a row of `tokens` tokens; the tensor, contiguous, must outlive the result.
perilune::Segments segments_of(const Tensor& cu_seqlens, int64_t tokens) {
  const int32_t* starts = cu_seqlens.const_data_ptr<int32_t>();
  int64_t count = cu_seqlens.size(0) - 1;
  TORCH_CHECK_VALUE(starts[0] == 0 && starts[count] == tokens, "cu_seqlens: expected values from 0 to ", tokens,
                    ", got ", starts[0], " to ", starts[count]);
  for (int64_t s = 0; s < count; ++s)
    TORCH_CHECK_VALUE(starts[s] <= starts[s + 1], "cu_seqlens: expected values that never fall, got ", starts[s + 1],
                      " after ", starts[s]);
  return {starts, count};
}

perilune::Segments segments_with_tokens(const Tensor& cu_seqlens, int64_t tokens) {
  perilune::Segments segments = segments_of(cu_seqlens, tokens);
  for (int64_t s = 0; s < segments.count; ++s)
    TORCH_CHECK_VALUE(segments.starts[s] < segments.starts[s + 1],
                      "cu_seqlens: expected a token in every segment, got none in segment ", s);
  return segments;
}

int64_t longest_of(const perilune::Segments& segments) {
  int64_t most = 0;
  for (int64_t s = 0; s < segments.count; ++s)
    most = std::max<int64_t>(most, segments.starts[s + 1] - segments.starts[s]);
  return most;
}

Tensor segment_offsets(const Tensor& segment, int64_t segments) {
  TORCH_CHECK_VALUE(segment.numel() < INT64_C(1) << 31, "segment: expected fewer than 2**31 tokens, got ",
                    segment.numel());
  Tensor index = segment.contiguous(), starts = at::empty({segments + 1}, segment.options().dtype(at::kInt));
  if (!perilune::segment_starts(index.const_data_ptr<int64_t>(), index.numel(), segments,
                                starts.mutable_data_ptr<int32_t>()))
    refuse_segment(index, segments);
  return starts;
}

std::tuple<Tensor, Tensor> row_layout(const Tensor& cu_seqlens, int64_t total) {
  Tensor starts = cu_seqlens.contiguous();
  perilune::Segments segments = segments_of(starts, total);
  Tensor positions = at::empty({total}, starts.options().dtype(at::kLong)), segment = at::empty_like(positions);
  perilune::row_layout(segments, positions.mutable_data_ptr<int64_t>(),
                       segment.mutable_data_ptr<int64_t>(), at::get_num_threads());
  return {positions, segment};
}

Tensor pad(const Tensor& packed, const Tensor& cu_seqlens, int64_t length, double fill) {
  Tensor source = packed.contiguous(), starts = cu_seqlens.contiguous();
  perilune::Segments segments = segments_of(starts, source.size(0));
  int64_t longest = longest_of(segments);
  TORCH_CHECK_VALUE(longest <= length, "length: expected at least ", longest, ", the longest segment, got ", length);
  std::vector<int64_t> sizes{segments.count, length};
  sizes.insert(sizes.end(), source.sizes().begin() + 1, source.sizes().end());
  Tensor padded = at::empty(sizes, source.options());
  Tensor element = at::scalar_tensor(fill, source.options());
  perilune::pad({segments, length, token_bytes(source, 1)}, source.const_data_ptr(),
                element.const_data_ptr(), element.element_size(), padded.mutable_data_ptr(), at::get_num_threads());
  return padded;
}

Tensor unpad(const Tensor& padded, const Tensor& cu_seqlens, int64_t total) {
  Tensor source = padded.contiguous();
  Tensor starts = cu_seqlens.contiguous();
  perilune::Segments segments = segments_of(starts, total);
  int64_t longest = longest_of(segments), length = source.size(1);
  TORCH_CHECK_VALUE(longest <= length, "cu_seqlens: expected segments of at most ", length, " tokens, got ", longest);
  std::vector<int64_t> sizes{total};
  sizes.insert(sizes.end(), source.sizes().begin() + 2, source.sizes().end());
  Tensor packed = at::empty(sizes, source.options());
  perilune::unpad({segments, length, token_bytes(source, 2)}, source.const_data_ptr(),
                  packed.mutable_data_ptr(), at::get_num_threads());
  return packed;
}

Tensor segment_sum(const Tensor& values, const Tensor& cu_seqlens, bool mean) {
  Tensor x = values.contiguous(), starts = cu_seqlens.contiguous();
  perilune::Segments segments = (mean ? segments_with_tokens : segments_of)(starts, x.size(0));
  Tensor out = at::empty({segments.count}, x.options());
  perilune::segment_sum(segments, x.const_data_ptr(), mean, out.mutable_data_ptr(), real_of(x, "values"),
                        at::get_num_threads());
  return out;
}

std::tuple<Tensor, Tensor> segment_max(const Tensor& values, const Tensor& cu_seqlens) {
  Tensor x = values.contiguous(), starts = cu_seqlens.contiguous();
  perilune::Segments segments = segments_with_tokens(starts, x.size(0));
  Tensor out = at::empty({segments.count}, x.options());
  Tensor index = at::empty({segments.count}, x.options().dtype(at::kLong));
  perilune::segment_max(segments, x.const_data_ptr(), out.mutable_data_ptr(),
                        index.mutable_data_ptr<int64_t>(), real_of(x, "values"), at::get_num_threads());
  return {out, index};
}

Tensor segment_broadcast(const Tensor& values, const Tensor& cu_seqlens, int64_t total) {
  Tensor x = values.contiguous(), starts = cu_seqlens.contiguous();
  perilune::Segments segments = segments_of(starts, total);
  Tensor out = at::empty({total}, x.options());
  perilune::segment_broadcast(segments, x.const_data_ptr(), x.element_size(), out.mutable_data_ptr(),
                              at::get_num_threads());
  return out;
}

std::tuple<Tensor, Tensor> version_mask(const Tensor& versions, const Tensor& carries, const Tensor& cu_seqlens,
                                        int64_t trained, int64_t max_staleness) {
  Tensor stamps = versions.contiguous(), wanted = carries.contiguous(), starts = cu_seqlens.contiguous();
  perilune::Segments segments = segments_of(starts, stamps.size(0));
  Tensor mask = at::empty_like(wanted), counts = at::empty({segments.count}, stamps.options());
  perilune::version_mask(segments, stamps.const_data_ptr<int64_t>(), wanted.const_data_ptr<bool>(),
                         trained - max_staleness, trained, mask.mutable_data_ptr<bool>(),
                         counts.mutable_data_ptr<int64_t>(), at::get_num_threads());
  const int64_t *count = counts.const_data_ptr<int64_t>(), *stamp = stamps.const_data_ptr<int64_t>();
  if (std::find(count, count + segments.count, -1) != count + segments.count)
    TORCH_CHECK_VALUE(false, "versions: expected none above ", trained, ", the version being trained, got ",
                      *std::max_element(stamp, stamp + stamps.numel()));
  return {mask, counts};
}

std::tuple<Tensor, Tensor> policy_gradient(const Tensor& logprob, const Tensor& coefficient,
                                           const std::optional<Tensor>& reference, const Tensor& cu_seqlens,
                                           double tau, double length) {
  Tensor x = logprob.contiguous(), c = coefficient.contiguous(), r = dense(reference);
  Tensor starts = cu_seqlens.contiguous();
  perilune::Segments segments = segments_of(starts, x.size(0));
  Tensor loss = at::empty({}, x.options()), drift = at::empty({segments.count}, x.options());
  perilune::policy_gradient({segments, data_of(x), data_of(c), data_of(r), nullptr, tau, length,
                             real_of(x, "logprob")},
                            loss.mutable_data_ptr(), drift.mutable_data_ptr(), at::get_num_threads());
  return {loss, drift};
}

Tensor policy_gradient_backward(const Tensor& coefficient, const std::optional<Tensor>& weight, const Tensor& drift,
                                const Tensor& cu_seqlens, const Tensor& g_loss, double tau, double length) {
  Tensor c = coefficient.contiguous(), w = dense(weight), d = drift.contiguous();
  Tensor starts = cu_seqlens.contiguous();
  perilune::Segments segments = segments_of(starts, c.size(0));
  Tensor gradient = at::empty_like(c);
  perilune::policy_gradient_backward({segments, nullptr, data_of(c), nullptr, data_of(w), tau, length,
                                      real_of(c, "coefficient")},
                                     d.const_data_ptr(), g_loss.const_data_ptr(), gradient.mutable_data_ptr(),
                                     at::get_num_threads());
  return gradient;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(perilune, m) {
  m.def("row_layout(Tensor cu_seqlens, int total) -> (Tensor, Tensor)");
  m.def("pad(Tensor packed, Tensor cu_seqlens, int length, float fill) -> Tensor");
  m.def("unpad(Tensor padded, Tensor cu_seqlens, int total) -> Tensor");
  m.def("segment_offsets(Tensor segment, int segments) -> Tensor");
  m.def("segment_sum(Tensor values, Tensor cu_seqlens, bool mean) -> Tensor");
  m.def("segment_max(Tensor values, Tensor cu_seqlens) -> (Tensor, Tensor)");
  m.def("segment_broadcast(Tensor values, Tensor cu_seqlens, int total) -> Tensor");
  m.def("version_mask(Tensor versions, Tensor carries, Tensor cu_seqlens, int trained, int max_staleness)"
        " -> (Tensor, Tensor)");
  m.def("policy_gradient(Tensor logprob, Tensor coefficient, Tensor? reference, Tensor cu_seqlens,"
        " float tau, float length) -> (Tensor, Tensor)");
  m.def("policy_gradient_backward(Tensor coefficient, Tensor? weight, Tensor drift, Tensor cu_seqlens, Tensor g_loss,"
        " float tau, float length) -> Tensor");
}

TORCH_LIBRARY_IMPL(perilune, CPU, m) {
  m.impl("row_layout", &row_layout);
  m.impl("pad", &pad);
  m.impl("unpad", &unpad);
  m.impl("segment_offsets", &segment_offsets);
  m.impl("segment_sum", &segment_sum);
  m.impl("segment_max", &segment_max);
  m.impl("segment_broadcast", &segment_broadcast);
  m.impl("version_mask", &version_mask);
  m.impl("policy_gradient", &policy_gradient);
  m.impl("policy_gradient_backward", &policy_gradient_backward);
}
