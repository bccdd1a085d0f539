#include "../ops/logits_logprob.h"

#include <algorithm>
#include <cmath>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "level.h"
#include "statistics.h"

namespace perilune {
namespace {

constexpr int64_t kColumns = 16384;  // of one partition

}  // namespace

void logits_logprob(const Logits& logits, const int64_t* target, const float* scale, float* logprob, float* entropy,
                    float* lse, int threads) {
  const Kernels& level = kernels();
  int64_t parts = (logits.vocabulary + kColumns - 1) / kColumns;
  std::vector<double> sums(size_t(logits.tokens * parts * 3));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (int64_t task = 0; task < logits.tokens * parts; ++task) {
    int64_t token = task / parts, first = task % parts * kColumns;
    level.sum_columns(logits, token, scale[token], first, std::min(first + kColumns, logits.vocabulary),
                      sums.data() + task * 3);
  }
  for (int64_t t = 0; t < logits.tokens; ++t) {
    const double* own = sums.data() + t * parts * 3;
    double maximum = own[0], sum = 0.0, weighted = 0.0;
    for (int64_t part = 1; part < parts; ++part) maximum = std::max(maximum, own[part * 3]);
    for (int64_t part = 0; part < parts; ++part) {
      double shift = own[part * 3] - maximum, keep = std::exp(shift);
      sum += own[part * 3 + 1] * keep;
      weighted += (own[part * 3 + 2] + own[part * 3 + 1] * shift) * keep;
    }
    int64_t at = t * logits.stride + target[t];
    uint32_t bits;
    if (logits.dtype == Dtype::bfloat16) bits = uint32_t(static_cast<const uint16_t*>(logits.logits)[at]) << 16;
    else bits = static_cast<const uint32_t*>(logits.logits)[at];
    float chosen;
    std::copy_n(reinterpret_cast<const char*>(&bits), sizeof bits, reinterpret_cast<char*>(&chosen));
    float scaled = chosen * scale[t];  // rounded like the products that the maximum is of, so that it is none above it
    logprob[t] = float((scaled - maximum) - std::log(sum));
    entropy[t] = float(std::log(sum) - weighted / sum);
    lse[t] = float(maximum + std::log(sum));
  }
}

void logits_gradient(const Logits& logits, const int64_t* target, const float* statistics, void* out, int threads) {
  const Kernels& level = kernels();
  int64_t parts = (logits.vocabulary + kColumns - 1) / kColumns;
  std::vector<float> values = columns_of(statistics, logits.tokens, logits.tokens);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
  for (int64_t task = 0; task < logits.tokens * parts; ++task) {
    int64_t token = task / parts, first = task % parts * kColumns;
    float own[kStatistics];
    for (int i = 0; i < kStatistics; ++i) own[i] = values[i * logits.tokens + token];
    level.spread_gradient(logits, token, own, target[token], first, std::min(first + kColumns, logits.vocabulary),
                          out);
  }
}

}  // namespace perilune
