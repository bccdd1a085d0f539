// Softmax statistics and gradients of a row of logits, columns along the lanes. Included inside the namespace of a
// level.

constexpr int kRun = 16;  // vectors that share one step of the running maximum

// Far below where exp is 0; finite, so that 0 times it is 0.
PERILUNE_INLINE Floats bounded(Floats below) { return below < all(-1e4f) ? all(-1e4f) : below; }

struct RunningSums {
  Floats maximum, sum, weighted;

  PERILUNE_INLINE_MEMBER void take(const Floats* z, int count) {
    Floats most = maximum;
    for (int j = 0; j < count; ++j) most = larger(most, z[j]);
    Floats shift = bounded(maximum - most), keep = exponential(shift);
    weighted = (weighted + sum * shift) * keep;
    sum = sum * keep;
    maximum = most;
    for (int j = 0; j < count; ++j) {
      Floats below = bounded(z[j] - most), e = exponential(below);
      sum += e;
      weighted += e * below;
    }
  }
};

// Of columns first..last of one row: maximum, sum of exp(z - maximum), sum of exp(z - maximum) * (z - maximum).
template <typename T>
static void sum_columns(const Logits& args, int64_t token, float scale, int64_t first, int64_t last, double* out) {
  const T* row = static_cast<const T*>(args.logits) + token * args.stride;
  RunningSums sums{all(-1e30f), all(0.0f), all(0.0f)};
  int64_t column = first;
  for (; column + kRun * 16 <= last; column += kRun * 16) {
    Floats z[kRun];
    for (int j = 0; j < kRun; ++j) z[j] = load(row + column + j * 16) * scale;
    sums.take(z, kRun);
  }
  for (; column < last; column += 16) {
    Floats z = load_some(row + column, last - column) * scale;
    for (int64_t j = last - column; j < 16; ++j) z[j] = -__builtin_inff();
    sums.take(&z, 1);
  }
  double maximum = largest(sums.maximum), sum = 0.0, weighted = 0.0;
  for (int j = 0; j < 16; ++j) {
    double shift = double(sums.maximum[j]) - maximum, keep = ::exp(shift);
    sum += sums.sum[j] * keep;
    weighted += (sums.weighted[j] + sums.sum[j] * shift) * keep;
  }
  out[0] = maximum, out[1] = sum, out[2] = weighted;
}

// statistics: kStatistics values of this row, those of statistics.h.
template <typename T>
static void spread_gradient(const Logits& args, int64_t token, const float* statistics, int64_t target, int64_t first,
                            int64_t last, void* out) {
  const T* row = static_cast<const T*>(args.logits) + token * args.stride;
  T* to = static_cast<T*>(out) + token * args.vocabulary;
  Floats scale = all(statistics[0]), lse = all(statistics[1]);
  Floats at_zero = all(statistics[7]), slope = all(statistics[8]);
  for (int64_t column = first; column < last; column += 16) {
    Floats logprob = bounded(load_some(row + column, last - column) * scale - lse);
    logprob = logprob > all(0.0f) ? all(0.0f) : logprob;
    store_some(to + column, exponential(logprob) * (at_zero - slope * logprob), last - column);
  }
  if (target < first || target >= last) return;
  // 1 - p loses its digits as p nears 1; expm1 of the forward's own log-probability keeps them.
  float logprob = statistics[3], p = ::expf(logprob);
  float finite = logprob < -1e4f ? -1e4f : logprob;  // as `bounded`; expm1 has no need of it
  float shared = p * (statistics[6] - statistics[5] * (finite + statistics[2]));
  store_some(to + target, all(statistics[0] * (shared - ::expm1f(logprob) * statistics[4])), 1);
}
