// Gradients of an output head, hidden states and weight, from those of log-probability, entropy and lse.
//
// The vocabulary is walked in blocks of rows; the logit gradients of a block, formed again from hidden states and
// weight, stay in cache until both products with them are made. Every sum runs over the rows of a part of the
// vocabulary, or over the tokens, in order in fp32: the results depend neither on the block nor on the threads, and
// the gradient of a hidden state not on its neighbours.
#pragma once
#include "head.h"

namespace perilune {

// statistics [7, T]: scale, lse, entropy, logprob, and the gradients of logprob, entropy and lse.
// d_hidden: T rows of D fp32 values, or null; d_weight: [V, D] bfloat16, or null.
// False, and nothing done, where the level in use has no kernel for the dtype.
bool head_gradient(const Head& head, const int64_t* target, const float* statistics, float* d_hidden, void* d_weight,
                   int threads);

}  // namespace perilune
