// The ops of packed rows on a GPU: tensors to pointers. Shapes and dtypes were checked in engine/ops; values are not
// looked at, for that would wait for the device: csrc/cuda answers a partition that does not fit with NaN or -1.
#include "cuda.h"

#include <ATen/ops/scalar_tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../cuda/packed_rows.h"
#include "packed_rows.h"

namespace {

using at::Tensor;
using perilune::Call;
using perilune::data_of;
using perilune::dense;
using perilune::Real;
using perilune::real_of;
using perilune::token_bytes;
using perilune::cuda::Row;
namespace cuda = perilune::cuda;

// The tensor, contiguous, must outlive the result.
Row row_of(const Tensor& cu_seqlens, int64_t tokens) {
  return {cu_seqlens.const_data_ptr<int32_t>(), cu_seqlens.size(0) - 1, tokens};
}

std::tuple<Tensor, Tensor> row_layout(const Tensor& cu_seqlens, int64_t total) {
  Call call({{"cu_seqlens", cu_seqlens}});
  Tensor starts = cu_seqlens.contiguous();
  Tensor positions = at::empty({total}, starts.options().dtype(at::kLong)), segment = at::empty_like(positions);
  Call::check(cuda::row_layout(row_of(starts, total), positions.mutable_data_ptr<int64_t>(),
                               segment.mutable_data_ptr<int64_t>(), call.stream()), "row_layout");
  return {positions, segment};
}

Tensor pad(const Tensor& packed, const Tensor& cu_seqlens, int64_t length, double fill) {
  Call call({{"packed", packed}, {"cu_seqlens", cu_seqlens}});
  Tensor source = packed.contiguous(), starts = cu_seqlens.contiguous();
  Row row = row_of(starts, source.size(0));
  std::vector<int64_t> sizes{row.count, length};
  sizes.insert(sizes.end(), source.sizes().begin() + 1, source.sizes().end());
  Tensor padded = at::empty(sizes, source.options());
  Tensor element = at::scalar_tensor(fill, source.options().device(at::kCPU));
  Call::check(cuda::pad(row, length, token_bytes(source, 1), source.const_data_ptr(), element.const_data_ptr(),
                        element.element_size(), padded.mutable_data_ptr(), call.stream()), "pad");
  return padded;
}

Tensor unpad(const Tensor& padded, const Tensor& cu_seqlens, int64_t total) {
  Call call({{"padded", padded}, {"cu_seqlens", cu_seqlens}});
  Tensor source = padded.contiguous(), starts = cu_seqlens.contiguous();
  std::vector<int64_t> sizes{total};
  sizes.insert(sizes.end(), source.sizes().begin() + 2, source.sizes().end());
  Tensor packed = at::empty(sizes, source.options());
  Call::check(cuda::unpad(row_of(starts, total), source.size(1), token_bytes(source, 2), source.const_data_ptr(),
                          packed.mutable_data_ptr(), call.stream()), "unpad");
  return packed;
}

Tensor segment_offsets(const Tensor& segment, int64_t segments) {
  TORCH_CHECK_VALUE(segment.numel() < INT64_C(1) << 31, "segment: expected fewer than 2**31 tokens, got ",
                    segment.numel());
  Call call({{"segment", segment}});
  Tensor index = segment.contiguous(), starts = at::empty({segments + 1}, segment.options().dtype(at::kInt));
  Call::check(cuda::segment_starts(index.const_data_ptr<int64_t>(), {nullptr, segments, index.numel()},
                                   starts.mutable_data_ptr<int32_t>(), call.stream()), "segment_offsets");
  return starts;
}

Tensor segment_sum(const Tensor& values, const Tensor& cu_seqlens, bool mean) {
  Call call({{"values", values}, {"cu_seqlens", cu_seqlens}});
  Tensor x = values.contiguous(), starts = cu_seqlens.contiguous();
  Row row = row_of(starts, x.size(0));
  Tensor out = at::empty({row.count}, x.options());
  Call::check(cuda::segment_sum(row, x.const_data_ptr(), mean, out.mutable_data_ptr(), real_of(x, "values"),
                                call.stream()), "segment_sum");
  return out;
}

std::tuple<Tensor, Tensor> segment_max(const Tensor& values, const Tensor& cu_seqlens) {
  Call call({{"values", values}, {"cu_seqlens", cu_seqlens}});
  Tensor x = values.contiguous(), starts = cu_seqlens.contiguous();
  Row row = row_of(starts, x.size(0));
  Tensor out = at::empty({row.count}, x.options()), index = at::empty({row.count}, x.options().dtype(at::kLong));
  Call::check(cuda::segment_max(row, x.const_data_ptr(), out.mutable_data_ptr(), index.mutable_data_ptr<int64_t>(),
                                real_of(x, "values"), call.stream()), "segment_max");
  return {out, index};
}

Tensor segment_broadcast(const Tensor& values, const Tensor& cu_seqlens, int64_t total) {
  Call call({{"values", values}, {"cu_seqlens", cu_seqlens}});
  Tensor x = values.contiguous(), starts = cu_seqlens.contiguous();
  Tensor out = at::empty({total}, x.options());
  Call::check(cuda::segment_broadcast(row_of(starts, total), x.const_data_ptr(), x.element_size(),
                                      out.mutable_data_ptr(), call.stream()), "segment_broadcast");
  return out;
}

std::tuple<Tensor, Tensor> version_mask(const Tensor& versions, const Tensor& carries, const Tensor& cu_seqlens,
                                        int64_t trained, int64_t max_staleness) {
  Call call({{"versions", versions}, {"carries", carries}, {"cu_seqlens", cu_seqlens}});
  Tensor stamps = versions.contiguous(), wanted = carries.contiguous(), starts = cu_seqlens.contiguous();
  Row row = row_of(starts, stamps.size(0));
  Tensor mask = at::empty_like(wanted), counts = at::empty({row.count}, stamps.options());
  Call::check(cuda::version_mask(row, stamps.const_data_ptr<int64_t>(), wanted.const_data_ptr<bool>(),
                                 trained - max_staleness, trained, mask.mutable_data_ptr<bool>(),
                                 counts.mutable_data_ptr<int64_t>(), call.stream()), "version_mask");
  return {mask, counts};
}

std::tuple<Tensor, Tensor> policy_gradient(const Tensor& logprob, const Tensor& coefficient,
                                           const std::optional<Tensor>& reference, const Tensor& cu_seqlens,
                                           double tau, double length) {
  Call call({{"logprob", logprob}, {"coefficient", coefficient}, {"cu_seqlens", cu_seqlens}});
  call.also("reference", reference);
  Tensor x = logprob.contiguous(), c = coefficient.contiguous(), r = dense(reference);
  Tensor starts = cu_seqlens.contiguous();
  Row row = row_of(starts, x.size(0));
  Tensor loss = at::empty({}, x.options()), drift = at::empty({row.count}, x.options());
  Tensor losses = at::empty({row.count + 1}, x.options().dtype(at::kDouble));
  cuda::Loss args = {data_of(x), data_of(c), data_of(r), nullptr, tau, length, real_of(x, "logprob")};
  Call::check(cuda::policy_gradient(row, args, losses.mutable_data_ptr<double>(), loss.mutable_data_ptr(),
                                    drift.mutable_data_ptr(), call.stream()),
              "policy_gradient");
  return {loss, drift};
}

Tensor policy_gradient_backward(const Tensor& coefficient, const std::optional<Tensor>& weight, const Tensor& drift,
                                const Tensor& cu_seqlens, const Tensor& g_loss, double tau, double length) {
  Call call({{"coefficient", coefficient}, {"drift", drift}, {"cu_seqlens", cu_seqlens}, {"g_loss", g_loss}});
  call.also("weight", weight);
  Tensor c = coefficient.contiguous(), w = dense(weight), d = drift.contiguous();
  Tensor starts = cu_seqlens.contiguous();
  Tensor gradient = at::empty_like(c);
  cuda::Loss args = {nullptr, data_of(c), nullptr, data_of(w), tau, length, real_of(c, "coefficient")};
  Call::check(cuda::policy_gradient_backward(row_of(starts, c.size(0)), args, d.const_data_ptr(),
                                             g_loss.const_data_ptr(), gradient.mutable_data_ptr(), call.stream()),
              "policy_gradient_backward");
  return gradient;
}

}  // namespace

TORCH_LIBRARY_IMPL(perilune, CUDA, m) {
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
