// The gradient of one raw logit z, from the seven statistics of its token:
//
//   scale * (g_logprob * ([z is the target's] - p) - g_entropy * p * (logprob + entropy) + g_lse * p)
#pragma once
#include "device.cuh"

namespace perilune {
namespace cuda {

// p * (constant + factor * logprob), with logprob = z * scale - lse: all that a logit other than the target's needs.
struct Slope {
  float scale, lse, constant, factor;
};

// statistics [7, *], `pitch` apart: scale, lse, entropy, logprob, gradients of logprob, entropy and lse.
__device__ inline Slope slope_of(const float* statistics, int64_t pitch) {
  float scale = statistics[0], entropy = statistics[2 * pitch], target_logprob = statistics[3 * pitch];
  float g_logprob = statistics[4 * pitch], g_entropy = statistics[5 * pitch], g_lse = statistics[6 * pitch];
  Slope slope = {scale, statistics[pitch], (g_lse - g_logprob - g_entropy * entropy) * scale, -g_entropy * scale};
  // A target outside of the vocabulary has no log-probability: its token shows it everywhere.
  if (isnan(target_logprob)) slope.constant = target_logprob;
  return slope;
}

__device__ inline float logprob_of(float logit, float scale, float lse) {
  float logprob = logit * scale - lse;
  return logprob > 0.0f ? 0.0f : logprob;
}

__device__ inline float slope_of_logprob(const Slope& slope, float logprob) {
  return __expf(logprob) * fmaf(slope.factor, logprob, slope.constant);
}

__device__ inline float slope_at(const Slope& slope, float logit) {
  return slope_of_logprob(slope, logprob_of(logit, slope.scale, slope.lse));
}

// Far below where exp is 0; finite, so that 0 times it is 0 for a logit of minus infinity. NaN stays.
__device__ inline float bounded(float below) { return below < -1e4f ? -1e4f : below; }

// 1 - p loses its digits as p nears 1; expm1 of the forward's own log-probability keeps them.
__device__ inline float on_target(const float* statistics, int64_t pitch) {
  float scale = statistics[0], logprob = statistics[3 * pitch];
  float own = -expm1f(logprob) * statistics[4 * pitch];
  float rest = statistics[6 * pitch] - statistics[5 * pitch] * (bounded(logprob) + statistics[2 * pitch]);
  return scale * (own + __expf(logprob) * rest);
}

}  // namespace cuda
}  // namespace perilune
