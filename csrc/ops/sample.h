// One token for each row by Gumbel-max, with the log-probability that token_logprob gives, bit for bit.
//
// Noise: Philox4x32-10 under `key`, counter (v / 4, position, position >> 32, 0), word v % 4. A word w stands for
// x = w * 2^-32 + 2^-33 in fp32, at most 1 - 2^-24; the noise is -log(-log1p(-x)).
#pragma once
#include "head.h"

namespace perilune {

// temperature [T] >= 0 (checked by the caller), 0 for the largest logit; key [T], position [T]; results [T].
void sample(const Head& head, const float* temperature, const int64_t* key, const int64_t* position,
            int64_t* token, float* logprob, int threads);

}  // namespace perilune
