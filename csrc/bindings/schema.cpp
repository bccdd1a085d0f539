// Schemas of the ops of cpu.cpp and logits.cpp, for every device; those of head.cpp, packed_rows.cpp, packed_attention.cpp
// and ceiling.cpp stand beside them. Fake kernels, autograd and the reference that serves devices without a kernel are
// registered from Python (engine/ops).
#include <Python.h>
#include <torch/library.h>

TORCH_LIBRARY(perilune, m) {
  m.def("token_logprob(Tensor hidden, Tensor weight, Tensor target, Tensor scale, bool want_entropy)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("logit_gradient(Tensor hidden, Tensor weight, Tensor target, Tensor statistics, int start) -> Tensor");
  m.def("logits_logprob(Tensor logits, Tensor target, Tensor scale) -> (Tensor logprob, Tensor entropy, Tensor lse)");
  m.def("logits_gradient(Tensor logits, Tensor target, Tensor statistics) -> Tensor");
  m.def("sample(Tensor hidden, Tensor weight, Tensor temperature, Tensor key, Tensor position)"
        " -> (Tensor, Tensor)");
  m.def("slot_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor slot, Tensor position,"
        " float scale) -> Tensor");
  m.def("rms_norm(Tensor hidden, Tensor weight, float epsilon) -> Tensor");
  m.def("add_rms_norm(Tensor hidden, Tensor update, Tensor weight, float epsilon) -> (Tensor, Tensor)");
  m.def("rotate_and_store(Tensor fused, Tensor cosine, Tensor sine, Tensor slot, Tensor position,"
        " Tensor(a!) key_cache, Tensor(b!) value_cache) -> Tensor");
  m.def("gated_silu(Tensor gate_up) -> Tensor");
}

// The module itself is empty: importing it runs the registrations above.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
