// Softmax statistics, targets, draws and gradients of logits tile by tile. Included inside the namespace of a level.

PERILUNE_INLINE void start(TileState& state) {
  for (int t = 0; t < kTile; ++t) {
    state.maximum[t] = -1e30f;  // finite, so that differences are never NaN of themselves
    state.sum[t] = state.weighted[t] = 0.0f;
    state.chosen[t] = __builtin_nanf("");
    state.threshold[t] = -__builtin_inff();
    state.score[t] = -__builtin_inf();
    state.index[t] = 0;
  }
}

// Not inlined: scoring and drawing share these very instructions, so that their sums agree bit for bit. A product that
// were fused with the difference would not be rounded as the maximum is: the largest would not count as exp(0), and a
// token that is nearly certain could get a log-probability above 0.
static __attribute__((noinline)) void accumulate(const float* c, int rows, Floats scale, TileState& state) {
  Floats scaled[kRows], most = scaled[0] = load(c) * scale;
  for (int r = 1; r < rows; ++r) most = larger(most, scaled[r] = load(c + r * 32) * scale);
  Floats before = load(state.maximum), maximum = larger(before, most);
  Floats shift = before - maximum, keep = exponential(shift);
  Floats old_sum = load(state.sum), old_weighted = load(state.weighted);
  Floats sum[2] = {all(0.0f), all(0.0f)}, weighted[2] = {all(0.0f), all(0.0f)};
  for (int r = 0; r < rows; ++r) {
    Floats below = scaled[r] - maximum, e = exponential(below);
    sum[r & 1] += e;
    weighted[r & 1] += e * below;
  }
  store(state.maximum, maximum);
  store(state.sum, old_sum * keep + (sum[0] + sum[1]));
  store(state.weighted, (old_weighted + old_sum * shift) * keep + (weighted[0] + weighted[1]));
}

// Whether one of a tile's targets may be among `rows` rows; most blocks hold none.
PERILUNE_INLINE bool may_hold(const int64_t* target, int64_t first_row, int rows) {
#if PERILUNE_WIDE
  __m512i first = _mm512_set1_epi64(first_row), count = _mm512_set1_epi64(rows);
  __mmask8 low = _mm512_cmplt_epu64_mask(_mm512_sub_epi64(_mm512_loadu_si512(target), first), count);
  __mmask8 high = _mm512_cmplt_epu64_mask(_mm512_sub_epi64(_mm512_loadu_si512(target + 8), first), count);
  return (low | high) != 0;
#else
  (void)target, (void)first_row, (void)rows;
  return true;
#endif
}

PERILUNE_INLINE void pick_targets(const float* c, int rows, int64_t first_row, const float* scale,
                                  const int64_t* target, TileState& state) {
  if (!may_hold(target, first_row, rows)) return;
  for (int t = 0; t < kTile; ++t) {
    int64_t row = target[t] - first_row;
    if (row >= 0 && row < rows) state.chosen[t] = c[row * 32 + t] * scale[t];
  }
}

// Candidates that a cheap upper bound of their noise lets through, one by one in float64.
static __attribute__((noinline)) void weigh(Ints hit, Floats logit, Floats x, const uint8_t* greedy, int64_t row,
                                            TileState& state) {
  for (int t = 0; t < kTile; ++t) {
    if (!hit[t]) continue;
    double score = logit[t];
    if (!greedy[t]) score -= ::log(-::log1p(-double(x[t])));
    if (!(score > state.score[t])) continue;
    state.score[t] = score;
    state.index[t] = row;
    state.chosen[t] = logit[t];
    state.threshold[t] = float(score - 1e-4 - 1e-6 * __builtin_fabs(score));
  }
}

// -log(-log1p(-x)) <= -log(x) <= -floor(log2(x)) * ln(2): an exponent instead of two logarithms.
PERILUNE_INLINE void draw(const float* c, int rows, int64_t first_row, Floats scale, const Scan& scan, int64_t token,
                          TileState& state) {
  Words key[2], position[2];
  Floats noisy;
  bool all_greedy = true;
  for (int t = 0; t < kTile; ++t) {
    uint64_t k = uint64_t(scan.key[token + t]), p = uint64_t(scan.position[token + t]);
    key[0][t] = uint32_t(k), key[1][t] = uint32_t(k >> 32);
    position[0][t] = uint32_t(p), position[1][t] = uint32_t(p >> 32);
    noisy[t] = scan.greedy[token + t] ? 0.0f : 0.693147181f;
    all_greedy = all_greedy && scan.greedy[token + t];
  }
  for (int r = 0; r < rows; r += 4) {
    Words words[4] = {};
    if (!all_greedy) philox(uint32_t((first_row + r) / 4), position, key, words);
    for (int j = 0; j < 4 && r + j < rows; ++j) {
      Floats logit = load(c + (r + j) * 32) * scale;
      Floats x = __builtin_convertvector(words[j], Floats) * 0x1p-32f + 0x1p-33f;
      x = x < all(1.0f - 0x1p-24f) ? x : all(1.0f - 0x1p-24f);
      Ints exponent = ((Ints)x >> 23) - 127;
      Floats bound = logit - __builtin_convertvector(exponent, Floats) * noisy;
      Ints hit = (Ints)(bound > load(state.threshold));
      if (any(hit)) weigh(hit, logit, x, scan.greedy + token, first_row + r + j, state);
    }
  }
}

template <typename Product, typename T>
static void scan_rows(const Scan& scan, int64_t first_row, int64_t last_row, int64_t first_tile, int64_t last_tile,
                      TileState* states, void* scratch) {
  alignas(64) float c[kRows * 32];
  Product product(scan.width, scratch);
  for (int64_t tile = first_tile; tile < last_tile; ++tile) start(states[tile]);
  for (int64_t row = first_row; row < last_row; row += kRows) {
    int rows = last_row - row < kRows ? int(last_row - row) : kRows;
    product.take(static_cast<const T*>(scan.weight), row, rows);
    for (int64_t pair = first_tile; pair < last_tile; pair += 2) {
      int tiles = last_tile - pair < 2 ? 1 : 2;
      product.run(scan.packed, pair, tiles, c);
      for (int i = 0; i < tiles; ++i) {
        TileState& state = states[pair + i];
        int64_t token = (pair + i) * kTile;
        Floats scale = load(scan.scale + token);
        accumulate(c + i * kTile, rows, scale, state);
        if (scan.target) pick_targets(c + i * kTile, rows, row, scan.scale + token, scan.target + token, state);
        else draw(c + i * kTile, rows, row, scale, scan, token, state);
      }
    }
  }
}

// dz = scale * (g_logprob * ([row = target] - p) - g_entropy * p * (z - lse + entropy) + g_lse * p)
template <typename Product, typename T>
static void gradient_rows(const Gradient& args, int64_t first_row, int64_t last_row, void* scratch) {
  alignas(64) float c[kRows * 32];
  const Scan& scan = args.scan;
  Product product(scan.width, scratch);
  int64_t pitch = scan.tiles * kTile;
  for (int64_t row = first_row; row < last_row; row += kRows) {
    int rows = last_row - row < kRows ? int(last_row - row) : kRows;
    product.take(static_cast<const T*>(scan.weight), row, rows);
    for (int64_t tile = 0; tile < scan.tiles; ++tile) {
      if (tile % 2 == 0) product.run(scan.packed, tile, scan.tiles - tile < 2 ? 1 : 2, c);
      const float *statistics = args.statistics + tile * kTile, *logits = c + tile % 2 * kTile;
      Floats scale = load(statistics), lse = load(statistics + pitch), entropy = load(statistics + 2 * pitch);
      Floats target_logprob = load(statistics + 3 * pitch), g_logprob = load(statistics + 4 * pitch);
      Floats g_entropy = load(statistics + 5 * pitch), g_lse = load(statistics + 6 * pitch);
      for (int r = 0; r < rows; ++r) {
        Floats logprob = load(logits + r * 32) * scale - lse;
        logprob = logprob > all(0.0f) ? all(0.0f) : logprob;
        Floats p = exponential(logprob);
        Floats gradient = p * ((g_lse - g_logprob) - g_entropy * (logprob + entropy)) * scale;
        for (int t = 0; t < kTile; ++t) {
          if (scan.target[tile * kTile + t] != args.start + row + r) continue;
          // 1 - p loses its digits as p nears 1; expm1 of the forward's own log-probability keeps them.
          float own = -::expm1f(target_logprob[t]) * g_logprob[t];
          gradient[t] = scale[t] * (own + p[t] * (g_lse[t] - g_entropy[t] * (logprob[t] + entropy[t])));
        }
        store_some(static_cast<T*>(args.out) + (row + r) * args.out_stride + tile * kTile, gradient,
                   args.tokens - tile * kTile);
      }
    }
  }
}
