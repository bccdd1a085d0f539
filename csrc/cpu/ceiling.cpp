#include "../ops/ceiling.h"

#include "level.h"

namespace perilune {

int64_t cpu_ceiling(int64_t rounds, int threads) {
  const Kernels& level = kernels();
  int64_t operations = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : operations)
  for (int thread = 0; thread < threads; ++thread) operations += level.saturate(rounds);
  return operations;
}

}  // namespace perilune
