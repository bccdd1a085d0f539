// Log-probability, entropy and log-normaliser of targets under softmax(logits * scale), for logits that exist.
//
// One pass forward, one pass backward. Columns are partitioned by V alone and merged in order in fp64, so a row's
// values do not depend on the rows beside it or the threads. A logit of minus infinity has probability 0.
#pragma once
#include "head.h"

namespace perilune {

struct Logits {
  const void* logits;     // T rows of V values, `stride` values apart
  int64_t stride, tokens, vocabulary;
  Dtype dtype;
};

// target [T] in 0..V-1, scale [T] finite and >= 0 (both checked by the caller); results [T] in nats.
void logits_logprob(const Logits& logits, const int64_t* target, const float* scale, float* logprob, float* entropy,
                    float* lse, int threads);

// out [T, V] in the dtype of the logits. statistics [7, T]: scale, lse, entropy, logprob, and the gradients of
// logprob, entropy and lse.
void logits_gradient(const Logits& logits, const int64_t* target, const float* statistics, void* out, int threads);

}  // namespace perilune
