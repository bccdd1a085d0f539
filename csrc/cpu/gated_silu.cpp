#include "../ops/gated_silu.h"

#include "level.h"
#include "share.h"

namespace perilune {

void gated_silu(const GatedSilu& args, int threads) {
  const Kernels& level = kernels();
  share_rows(args.rows, 2 * args.width, threads,
             [&](int64_t first, int64_t last) { level.gate(args, first, last); });
}

}  // namespace perilune
