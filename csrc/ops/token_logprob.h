// Log-probability, entropy and log-normaliser of targets under softmax(hidden @ weight.T * scale).
//
// Forward: read once over the head, O(T * V / 1024) floats of state, no logits kept. The vocabulary is
// partitioned by V alone and merged in order, so a token's values do not depend on T, its place or the threads.
#pragma once
#include "head.h"

namespace perilune {

// target [T] in 0..V-1, scale [T] finite and >= 0 (both checked by the caller); results [T] in nats.
void token_logprob(const Head& head, const int64_t* target, const float* scale, float* logprob,
                   float* entropy, float* lse, int threads);

// Gradient for raw logits of the vocabulary rows that `head.weight` holds, the first being row `start`:
// out [V, T] in the dtype of the head. statistics [7, T]: scale, lse, entropy, logprob, and the gradients
// of logprob, entropy and lse.
void logit_gradient(const Head& head, const int64_t* target, const float* statistics, int64_t start, void* out,
                    int threads);

}  // namespace perilune
