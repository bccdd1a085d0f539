// Log-probability, entropy and log-normaliser of targets from logits [T, V] that exist, and their gradient: one
// read forward, one read and one write backward. The order of every sum follows from V alone.
#pragma once
#include "launch.h"

namespace perilune {
namespace cuda {

struct Logits {
  const void* logits;  // T rows of V values, `stride` values apart
  int64_t stride, tokens, vocabulary;
  Dtype dtype;
  const int64_t* target;  // [T]; outside of 0..V-1: NaN
};

// scale [T], below 0 or not finite: NaN; results [T] in nats.
Failure logits_logprob(const Logits& args, const float* scale, float* logprob, float* entropy, float* lse,
                       Stream stream);

// Into out [T, V] in the dtype of the logits; statistics [7, T] as in ops/token_logprob.h.
Failure logits_gradient(const Logits& args, const float* statistics, void* out, Stream stream);

}  // namespace cuda
}  // namespace perilune
