// Tensors in, pointers out: the CPU side of the schemas. Shapes and dtypes were checked in engine/ops; what must
// be read from memory to be checked is checked here.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "../cpu/level.h"
#include "../ops/gated_silu.h"
#include "../ops/rms_norm.h"
#include "../ops/rotary.h"
#include "../ops/sample.h"
#include "../ops/slot_attention.h"
#include "../ops/token_logprob.h"
#include "tensors.h"

namespace {

using at::Tensor;
using perilune::check_range;
using perilune::dtype_of;
using perilune::head_of;
using perilune::with_unit_stride;

void check_below(const Tensor& values, const char* argument, int64_t high) {
  const int64_t* data = values.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < values.numel(); ++i)
    TORCH_CHECK_VALUE(data[i] < high, argument, ": expected values below ", high, ", got ", data[i]);
}

std::tuple<Tensor, Tensor, Tensor> token_logprob(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                 const Tensor& scale, bool want_entropy) {
  Tensor x = with_unit_stride(hidden), w = weight.contiguous(), y = target.contiguous(), s = scale.contiguous();
  check_range(y, "target", w.size(0));
  perilune::check_scale(s);
  auto options = hidden.options().dtype(at::kFloat);
  Tensor logprob = at::empty({x.size(0)}, options), entropy = at::empty_like(logprob), lse = at::empty_like(logprob);
  perilune::token_logprob(head_of(x, w), y.const_data_ptr<int64_t>(), s.const_data_ptr<float>(),
                          logprob.mutable_data_ptr<float>(), entropy.mutable_data_ptr<float>(),
                          lse.mutable_data_ptr<float>(), at::get_num_threads());
  if (!want_entropy) entropy.zero_();
  return {logprob, entropy, lse};
}

Tensor logit_gradient(const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor& statistics,
                      int64_t start) {
  Tensor x = with_unit_stride(hidden), w = weight.contiguous(), y = target.contiguous();
  Tensor columns = statistics.contiguous();
  Tensor out = at::empty({w.size(0), x.size(0)}, hidden.options());
  perilune::logit_gradient(head_of(x, w), y.const_data_ptr<int64_t>(), columns.const_data_ptr<float>(), start,
                           out.mutable_data_ptr(), at::get_num_threads());
  return out;
}

std::tuple<Tensor, Tensor> sample(const Tensor& hidden, const Tensor& weight, const Tensor& temperature,
                                  const Tensor& key, const Tensor& position) {
  Tensor x = with_unit_stride(hidden), w = weight.contiguous(), heat = temperature.contiguous();
  Tensor keys = key.contiguous(), positions = position.contiguous();
  for (int64_t t = 0; t < heat.size(0); ++t)
    TORCH_CHECK_VALUE(heat.const_data_ptr<float>()[t] >= 0, "temperature: expected values >= 0, got ",
                      heat.const_data_ptr<float>()[t]);
  Tensor token = at::empty({x.size(0)}, key.options());
  Tensor logprob = at::empty({x.size(0)}, hidden.options().dtype(at::kFloat));
  perilune::sample(head_of(x, w), heat.const_data_ptr<float>(), keys.const_data_ptr<int64_t>(),
                   positions.const_data_ptr<int64_t>(), token.mutable_data_ptr<int64_t>(),
                   logprob.mutable_data_ptr<float>(), at::get_num_threads());
  return {token, logprob};
}

Tensor slot_attention(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& slot,
                      const Tensor& position, double scale) {
  Tensor q = query.contiguous(), keys = key_cache.contiguous(), values = value_cache.contiguous();
  Tensor slots = slot.contiguous(), positions = position.contiguous();
  check_range(slots, "slot", keys.size(0));
  check_below(positions, "position", keys.size(1));
  TORCH_CHECK_VALUE(q.size(2) <= perilune::kLargestHeadSize, "query: expected heads of at most ",
                    perilune::kLargestHeadSize, " values, got ", q.size(2));
  Tensor out = at::empty(q.sizes(), q.options());
  perilune::slot_attention({q.const_data_ptr(), keys.const_data_ptr(), values.const_data_ptr(),
                            slots.const_data_ptr<int64_t>(), positions.const_data_ptr<int64_t>(),
                            out.mutable_data_ptr(), q.size(0), q.size(1), keys.size(2), q.size(2), keys.size(1),
                            float(scale), dtype_of(query, "query")},
                           at::get_num_threads());
  return out;
}

Tensor rms_norm(const Tensor& hidden, const Tensor& weight, double epsilon) {
  Tensor x = hidden.contiguous(), w = weight.contiguous(), out = at::empty(x.sizes(), x.options());
  perilune::rms_norm({x.const_data_ptr(), nullptr, w.const_data_ptr(), nullptr, out.mutable_data_ptr(),
                      x.numel() / w.size(0), w.size(0), float(epsilon), dtype_of(x, "hidden")},
                     at::get_num_threads());
  return out;
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& hidden, const Tensor& update, const Tensor& weight,
                                        double epsilon) {
  Tensor x = hidden.contiguous(), y = update.contiguous(), w = weight.contiguous();
  Tensor sum = at::empty(x.sizes(), x.options()), out = at::empty(x.sizes(), x.options());
  perilune::rms_norm({x.const_data_ptr(), y.const_data_ptr(), w.const_data_ptr(), sum.mutable_data_ptr(),
                      out.mutable_data_ptr(), x.numel() / w.size(0), w.size(0), float(epsilon),
                      dtype_of(x, "hidden")},
                     at::get_num_threads());
  return {sum, out};
}

Tensor rotate_and_store(const Tensor& fused, const Tensor& cosine, const Tensor& sine, const Tensor& slot,
                        const Tensor& position, const Tensor& key_cache, const Tensor& value_cache) {
  Tensor x = fused.contiguous(), cosines = cosine.contiguous(), sines = sine.contiguous();
  Tensor slots = slot.contiguous(), positions = position.contiguous();
  check_range(slots, "slot", key_cache.size(0));
  check_below(positions, "position", key_cache.size(1));
  int64_t shared = key_cache.size(2), heads = x.size(1) - 2 * shared, size = x.size(2);
  Tensor query = at::empty({x.size(0), heads, size}, x.options());
  perilune::rotate_and_store({x.const_data_ptr(), cosines.const_data_ptr(), sines.const_data_ptr(),
                              slots.const_data_ptr<int64_t>(), positions.const_data_ptr<int64_t>(),
                              key_cache.mutable_data_ptr(), value_cache.mutable_data_ptr(),
                              query.mutable_data_ptr(), x.size(0), heads, shared, size, key_cache.size(1),
                              dtype_of(x, "fused")},
                             at::get_num_threads());
  return query;
}

Tensor gated_silu(const Tensor& gate_up) {
  Tensor x = gate_up.contiguous();
  Tensor out = at::empty({x.size(0), x.size(1) / 2}, x.options());
  perilune::gated_silu({x.const_data_ptr(), out.mutable_data_ptr(), out.size(0), out.size(1),
                        dtype_of(x, "gate_up")},
                       at::get_num_threads());
  return out;
}

std::string cpu_level() { return perilune::level_name(perilune::level()); }
std::string best_cpu_level() { return perilune::level_name(perilune::best_level()); }

bool set_cpu_level(std::string wanted) {
  using perilune::Level;
  for (Level level : {Level::plain, Level::avx2, Level::avx512, Level::avx512bf16, Level::amx})
    if (wanted == perilune::level_name(level)) return perilune::set_level(level);
  TORCH_CHECK_VALUE(false, "level: expected plain, avx2, avx512, avx512bf16 or amx, got ", wanted);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(perilune, m) {
  m.def("cpu_level() -> str", &cpu_level);
  m.def("best_cpu_level() -> str", &best_cpu_level);
  m.def("set_cpu_level(str wanted) -> bool", &set_cpu_level);
}

TORCH_LIBRARY_IMPL(perilune, CPU, m) {
  m.impl("token_logprob", &token_logprob);
  m.impl("logit_gradient", &logit_gradient);
  m.impl("sample", &sample);
  m.impl("slot_attention", &slot_attention);
  m.impl("rms_norm", &rms_norm);
  m.impl("add_rms_norm", &add_rms_norm);
  m.impl("rotate_and_store", &rotate_and_store);
  m.impl("gated_silu", &gated_silu);
}
