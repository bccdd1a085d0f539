#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../ops/ceiling.h"

namespace {

int64_t cpu_ceiling(int64_t rounds) { return perilune::cpu_ceiling(rounds, at::get_num_threads()); }

}  // namespace

TORCH_LIBRARY_FRAGMENT(perilune, m) { m.def("cpu_ceiling(int rounds) -> int", &cpu_ceiling); }
