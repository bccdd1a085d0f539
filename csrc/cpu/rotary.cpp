#include "../ops/rotary.h"

#include "level.h"
#include "share.h"

namespace perilune {

void rotate_and_store(const Rotary& args, int threads) {
  const Kernels& level = kernels();
  share_rows(args.tokens, (args.heads + 2 * args.shared_heads) * args.head_size, threads,
             [&](int64_t first, int64_t last) { level.rotate(args, first, last); });
}

}  // namespace perilune
