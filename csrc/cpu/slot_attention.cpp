#include "../ops/slot_attention.h"

#include "level.h"

namespace perilune {

// The shared heads of one token follow each other: their keys stand side by side in memory.
void slot_attention(const SlotAttention& args, int threads) {
  const Kernels& level = kernels();
  int64_t tasks = args.tokens * args.shared_heads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
  for (int64_t task = 0; task < tasks; ++task) level.attend(args, task / args.shared_heads, task % args.shared_heads);
}

}  // namespace perilune
