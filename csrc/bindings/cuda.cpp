// Tensors in, pointers out: the CUDA side of the schemas of schema.cpp. Shapes and dtypes were checked in engine/ops;
// values are not looked at, for that would wait for the device: csrc/cuda answers those out of range with NaN.
#include "cuda.h"

#include <Python.h>

#include <tuple>

#include "../cuda/rows.h"
#include "../cuda/slot_attention.h"

namespace {

using at::Tensor;
using perilune::Call;
using perilune::dtype_of;
namespace cuda = perilune::cuda;

Tensor slot_attention(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const Tensor& slot,
                      const Tensor& position, double scale) {
  Call call({{"query", query}, {"key_cache", key_cache}, {"value_cache", value_cache}, {"slot", slot},
             {"position", position}});
  Tensor q = query.contiguous(), keys = key_cache.contiguous(), values = value_cache.contiguous();
  Tensor slots = slot.contiguous(), positions = position.contiguous();
  TORCH_CHECK_VALUE(q.size(2) <= perilune::kLargestHeadSize, "query: expected heads of at most ",
                    perilune::kLargestHeadSize, " values, got ", q.size(2));
  Tensor out = at::empty(q.sizes(), q.options());
  perilune::SlotAttention args = {q.const_data_ptr(), keys.const_data_ptr(), values.const_data_ptr(),
                        slots.const_data_ptr<int64_t>(), positions.const_data_ptr<int64_t>(), out.mutable_data_ptr(),
                        q.size(0), q.size(1), keys.size(2), q.size(2), keys.size(1), float(scale),
                        dtype_of(query, "query")};
  Tensor workspace = at::empty({cuda::attention_workspace(args)}, q.options().dtype(at::kFloat));
  Call::check(cuda::slot_attention(args, keys.size(0), workspace.mutable_data_ptr<float>(), call.stream()),
              "slot_attention");
  return out;
}

Tensor rms_norm(const Tensor& hidden, const Tensor& weight, double epsilon) {
  Call call({{"hidden", hidden}, {"weight", weight}});
  Tensor x = hidden.contiguous(), w = weight.contiguous(), out = at::empty(x.sizes(), x.options());
  Call::check(cuda::rms_norm({x.const_data_ptr(), nullptr, w.const_data_ptr(), nullptr, out.mutable_data_ptr(),
                              x.numel() / w.size(0), w.size(0), float(epsilon), dtype_of(x, "hidden")},
                             call.stream()), "rms_norm");
  return out;
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& hidden, const Tensor& update, const Tensor& weight,
                                        double epsilon) {
  Call call({{"hidden", hidden}, {"update", update}, {"weight", weight}});
  Tensor x = hidden.contiguous(), y = update.contiguous(), w = weight.contiguous();
  Tensor sum = at::empty(x.sizes(), x.options()), out = at::empty(x.sizes(), x.options());
  Call::check(cuda::rms_norm({x.const_data_ptr(), y.const_data_ptr(), w.const_data_ptr(), sum.mutable_data_ptr(),
                              out.mutable_data_ptr(), x.numel() / w.size(0), w.size(0), float(epsilon),
                              dtype_of(x, "hidden")},
                             call.stream()), "add_rms_norm");
  return {sum, out};
}

Tensor rotate_and_store(const Tensor& fused, const Tensor& cosine, const Tensor& sine, const Tensor& slot,
                        const Tensor& position, const Tensor& key_cache, const Tensor& value_cache) {
  Call call({{"fused", fused}, {"cosine", cosine}, {"sine", sine}, {"slot", slot}, {"position", position},
             {"key_cache", key_cache}, {"value_cache", value_cache}});
  Tensor x = fused.contiguous(), cosines = cosine.contiguous(), sines = sine.contiguous();
  Tensor slots = slot.contiguous(), positions = position.contiguous();
  int64_t shared = key_cache.size(2), heads = x.size(1) - 2 * shared, size = x.size(2);
  Tensor query = at::empty({x.size(0), heads, size}, x.options());
  Call::check(cuda::rotate_and_store({x.const_data_ptr(), cosines.const_data_ptr(), sines.const_data_ptr(),
                                      slots.const_data_ptr<int64_t>(), positions.const_data_ptr<int64_t>(),
                                      key_cache.mutable_data_ptr(), value_cache.mutable_data_ptr(),
                                      query.mutable_data_ptr(), x.size(0), heads, shared, size, key_cache.size(1),
                                      dtype_of(x, "fused")},
                                     key_cache.size(0), call.stream()), "rotate_and_store");
  return query;
}

Tensor gated_silu(const Tensor& gate_up) {
  Call call({{"gate_up", gate_up}});
  Tensor x = gate_up.contiguous();
  Tensor out = at::empty({x.size(0), x.size(1) / 2}, x.options());
  Call::check(cuda::gated_silu({x.const_data_ptr(), out.mutable_data_ptr(), out.size(0), out.size(1),
                                dtype_of(x, "gate_up")},
                               call.stream()), "gated_silu");
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(perilune, CUDA, m) {
  m.impl("slot_attention", &slot_attention);
  m.impl("rms_norm", &rms_norm);
  m.impl("add_rms_norm", &add_rms_norm);
  m.impl("rotate_and_store", &rotate_and_store);
  m.impl("gated_silu", &gated_silu);
}

// The module itself is empty: importing it runs the registrations above.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
