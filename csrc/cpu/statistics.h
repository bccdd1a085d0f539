// What the gradient of a logit is made of, per token.
#pragma once
#include <cstdint>
#include <vector>

#include "level.h"

namespace perilune {

// [kStatistics, lanes]: the seven `statistics` [7, tokens] filled up with zeros, then at_zero and slope of
//   gradient = p * (at_zero - slope * logprob)
// with at_zero = scale * (g_lse - g_logprob - g_entropy * entropy) and slope = scale * g_entropy.
inline std::vector<float> columns_of(const float* statistics, int64_t tokens, int64_t lanes) {
  std::vector<float> all(size_t(kStatistics * lanes), 0.0f);
  for (int i = 0; i < 7; ++i)
    for (int64_t t = 0; t < tokens; ++t) all[i * lanes + t] = statistics[i * tokens + t];
  for (int64_t t = 0; t < tokens; ++t) {
    auto value = [&](int i) { return all[i * lanes + t]; };
    all[7 * lanes + t] = value(0) * (value(6) - value(4) - value(5) * value(2));
    all[8 * lanes + t] = value(0) * value(5);
  }
  return all;
}

}  // namespace perilune
