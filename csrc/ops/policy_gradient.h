// Policy-gradient loss of a packed row: -sum_t c_t l_t + (tau / 2) sum_s (D_s / length)^2, with l the log-probs and D_s
// the sum of l - reference over segment s. One read of the tokens forward, one backward.
#pragma once
#include "segments.h"

namespace perilune {

struct PolicyGradient {
  Segments segments;
  const void* logprob;      // [T], null backward
  const void* coefficient;  // [T]
  const void* reference;    // [T]; null: the log-probs themselves, D is 0
  const void* weight;       // [T] factors of the gradient, read backward; null: 1
  double tau, length;
  Real real;
};

// loss [1] and drift [S]: D.
void policy_gradient(const PolicyGradient& args, void* loss, void* drift, int threads);

// g_loss [1]: gradient of the loss; gradient [T] of the log-probs.
void policy_gradient_backward(const PolicyGradient& args, const void* drift, const void* g_loss, void* gradient,
                              int threads);

}  // namespace perilune
