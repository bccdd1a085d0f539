#include "../ops/slot_attention.h"

#include "level.h"

namespace perilune {

// Tokens of one shared head follow each other, so a prefill finds its keys in the cache.
void slot_attention(const SlotAttention& args, int threads) {
  const Kernels& level = kernels();
  int64_t tasks = args.tokens * args.shared_heads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 8)
  for (int64_t task = 0; task < tasks; ++task) level.attend(args, task % args.tokens, task / args.tokens);
}

}  // namespace perilune
