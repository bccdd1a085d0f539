#include "../ops/policy_gradient.h"

#include <vector>

#include "level.h"
#include "share.h"

namespace perilune {

void policy_gradient(const PolicyGradient& args, void* loss, void* drift, int threads) {
  const Kernels& level = kernels();
  std::vector<double> losses(args.segments.count);
  share_segments(args.segments, threads, [&](int64_t first, int64_t last) {
    level.loss(args, losses.data(), drift, first, last);
  });
  double sum = 0;
  for (double value : losses) sum += value;
  if (args.real == Real::float32) *static_cast<float*>(loss) = float(sum);
  else *static_cast<double*>(loss) = sum;
}

void policy_gradient_backward(const PolicyGradient& args, const void* drift, const void* g_loss, void* gradient,
                              int threads) {
  const Kernels& level = kernels();
  share_segments(args.segments, threads, [&](int64_t first, int64_t last) {
    level.loss_gradient(args, drift, g_loss, gradient, first, last);
  });
}

}  // namespace perilune
