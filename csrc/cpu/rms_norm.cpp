#include "../ops/rms_norm.h"

#include "level.h"
#include "share.h"

namespace perilune {

void rms_norm(const RmsNorm& args, int threads) {
  const Kernels& level = kernels();
  share_rows(args.rows, args.width, threads,
             [&](int64_t first, int64_t last) { level.norm(args, first, last); });
}

}  // namespace perilune
