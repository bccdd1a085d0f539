// Attention of the tokens of a span. Included inside the namespace of a level.
//
// The columns of a span are its queries, and for each of them the heads that share a key-value head, one after the
// other; its keys are the context, then the span. Scores are made as `keys x columns`: columns lie along the lanes,
// so that the softmax needs no sum across lanes, and a block of probabilities leaves the registers packed as the
// factor of the next product. Blocks are counted from the first column and the first key, whatever stands around
// the span; each sum runs in the order of the keys.

constexpr int kStrip = 32;                          // columns that go through the softmax together
constexpr int kStrips = kSpanColumns / kStrip;

// Cuts pieces off a scratch; the sum of all pieces where there is none.
struct Pieces {
  char* data;
  int64_t used = 0;

  template <typename T>
  T* next(int64_t count) {
    T* piece = reinterpret_cast<T*>(data + used);
    used += (count * int64_t(sizeof(T)) + 63) / 64 * 64;
    return piece;
  }
};

PERILUNE_INLINE bool any_lane(RegisterInts mask) {
#if PERILUNE_WIDE
  return any(mask);
#else
  int32_t either = 0;
  for (int i = 0; i < kLanes; ++i) either |= mask[i];
  return either != 0;
#endif
}

PERILUNE_INLINE Register greater(Register a, Register b) { return a > b ? a : b; }

// 2^x for x <= 0 within 3.5e-6 of itself, or 2e-7; p(0) = 1 and p(1) = 2 exactly.
template <bool precise>
PERILUNE_INLINE Register power(Register x) {
#if PERILUNE_WIDE
  Register f = (Register)_mm512_reduce_ps((__m512)x, 0x09);  // x - floor(x)
#else
  Register bounded = x < spread(-126.0f) ? spread(-126.0f) : x;  // in this order NaN stays NaN
  Register shifted = (bounded - 0.5f) + 12582912.0f;  // 1.5 * 2^23: the low bits hold floor(x)
  Register f = bounded - (shifted - 12582912.0f);
#endif
  Register p;
  if (precise) {
    p = f * 2.17150257e-4f + 1.2440877e-3f;
    p = p * f + 9.67806391e-3f;
    p = p * f + 5.54841533e-2f;
    p = p * f + 2.40229517e-1f;
    p = p * f + 6.93147004e-1f;
  } else {
    p = f * 1.35557475e-2f + 5.20323701e-2f;
    p = p * f + 2.41379768e-1f;
    p = p * f + 6.93032146e-1f;
  }
  p = p * f + 1.0f;
#if PERILUNE_WIDE
  return (Register)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  Register power = (Register)(((RegisterWords)shifted << 23) + 0x3f800000u);
  return x < spread(-126.0f) ? spread(0.0f) : p * power;
#endif
}

// Where the columns of a part stand in the tensors.
template <typename T>
struct Columns {
  int count, padded;                                // that exist; in whole strips
  int64_t token[kSpanColumns], head[kSpanColumns];
  const T* rows[kSpanColumns];
  alignas(64) int32_t visible[kSpanColumns];        // keys that a column sees

  Columns(const PackedAttention& args, const SpanPart& part) {
    int64_t group = args.heads / args.shared_heads, left = part.span.length * group - part.first_column;
    count = left < kSpanColumns ? int(left) : kSpanColumns;
    padded = int(whole_chunks(count));
    int64_t query = part.first_column / group, member = part.first_column % group;
    for (int c = 0; c < padded; ++c) {
      token[c] = part.span.start + query;
      head[c] = part.shared_head * group + member;
      visible[c] = int32_t(part.span.context_length + query + 1);
      if (c + 1 < count && ++member == group) member = 0, ++query;
    }
  }

  int strips() const { return padded / kStrip; }
  int64_t keys() const { return visible[padded - 1]; }

  // Sets `rows` to those of a tensor; null for columns that do not exist.
  const T* const* of(const Rows& tensor) {
    const T* data = static_cast<const T*>(tensor.data);
    for (int c = 0; c < padded; ++c)
      rows[c] = c < count ? data + token[c] * tensor.token_stride + head[c] * tensor.head_stride : nullptr;
    return rows;
  }

  // Keys from `first` on that a strip has to look at, in whole chunks, at most a block.
  int keys_of(int strip, int64_t first) const {
    int64_t left = visible[strip * kStrip + kStrip - 1] - first;
    return left >= kSpanKeys ? kSpanKeys : left <= 0 ? 0 : int(whole_chunks(left));
  }
};

PERILUNE_INLINE int64_t token_of(const Span& span, int64_t key) {
  return key < span.context_length ? span.context_start + key : span.start + key - span.context_length;
}

// A block of keys or values; null behind the last one.
template <typename T>
PERILUNE_INLINE void key_rows(const Rows& tensor, const SpanPart& part, int64_t first, const T* rows[kSpanKeys]) {
  int64_t keys = int64_t(part.span.context_length) + part.span.length;
  const T* data = static_cast<const T*>(tensor.data) + part.shared_head * tensor.head_stride;
  for (int k = 0; k < kSpanKeys; ++k)
    rows[k] = first + k < keys ? data + token_of(part.span, first + k) * tensor.token_stride : nullptr;
}

template <bool masked>
PERILUNE_INLINE Register seen(Register score, const int32_t* limit, int key) {
  if (!masked) return score;
  RegisterInts limits;
  __builtin_memcpy(&limits, limit, sizeof limits);
  return RegisterInts{} + key < limits ? score : spread(-1e30f);
}

// A maximum that was exceeded by a little still serves; each new one has all earlier sums scaled.
constexpr float kSlack = 8.0f;

// Scores of a strip to probabilities against the running maximum; returns whether earlier sums must be scaled, by
// `keep`. `limit`: how many keys of this block each column sees.
template <typename Matrix, bool masked>
static bool soften(const float* scores, int keys, const int32_t* limit, float scale, float* maximum, float* sum,
                   float* keep, typename Matrix::Value* probability) {
  constexpr bool precise = sizeof(typename Matrix::Value) == 4;
  bool changed = false;
  for (int column = 0; column < kStrip; column += 2 * kLanes) {
    auto score = [&](int k, int h) { return load_register(scores + k * kStrip + column + h * kLanes); };
    const int32_t* limits[2] = {limit + column, limit + column + kLanes};
    Register most[2][2], now[2], sums[2];
    for (int h = 0; h < 2; ++h) most[h][0] = most[h][1] = spread(-1e30f);
    for (int k = 0; k < keys; k += 2)
      for (int i = 0; i < 2; ++i)
        for (int h = 0; h < 2; ++h) most[h][i] = greater(seen<masked>(score(k + i, h), limits[h], k + i), most[h][i]);
    for (int h = 0; h < 2; ++h) {
      int at = column + h * kLanes;
      Register before = load_register(maximum + at), largest = greater(most[h][0], most[h][1]) * scale;
      now[h] = largest > before + kSlack ? largest : before;
      Register factor = power<precise>(before - now[h]);
      store_register(maximum + at, now[h]);
      store_register(keep + at, factor);
      changed |= any_lane(now[h] != before);
      sums[h] = load_register(sum + at) * factor;
    }
    for (int k = 0; k < keys; k += 2)
      for (int h = 0; h < 2; ++h) {
        Register p[2];
        for (int i = 0; i < 2; ++i) {
          p[i] = power<precise>(seen<masked>(score(k + i, h) * scale - now[h], limits[h], k + i));
          sums[h] += p[i];
        }
        int at = column + h * kLanes;
        Matrix::put_rows(probability + at / 16 * kSpanKeys * 16 + k * 16 + at % 16, p[0], p[1]);
      }
    for (int h = 0; h < 2; ++h) store_register(sum + column + h * kLanes, sums[h]);
  }
  return changed;
}

// Columns of a strip [width][32] to rows of a tensor, each times its factor.
template <typename T>
static void turn_out(const float* strip, const float* factor, int64_t size, T* const* rows) {
  for (int h = 0; h < kStrip; h += 16) {
    Floats by = load(factor + h);
    for (int64_t at = 0; at < size; at += 16) {
      Words block[16];
      for (int i = 0; i < 16; ++i) block[i] = (Words)(load(strip + (at + i) * kStrip + h) * by);
      transpose(block, block);
      for (int i = 0; i < 16; ++i)
        if (rows[h + i]) store_some(rows[h + i] + at, (Floats)block[i], size - at);
    }
  }
}

template <typename Matrix>
struct ForwardScratch {
  typedef typename Matrix::Value Value;
  Value *query, *key, *value, *probability;
  float *scores, *out, *maximum, *sum, *keep;

  ForwardScratch(Pieces& pieces, int64_t width) {
    query = pieces.next<Value>(width * kSpanColumns);
    key = pieces.next<Value>(width * kSpanKeys);
    value = pieces.next<Value>(width * kSpanKeys);
    probability = pieces.next<Value>(kSpanKeys * kStrip);
    scores = pieces.next<float>(kSpanKeys * kStrip);
    out = pieces.next<float>(width * kSpanColumns);
    maximum = pieces.next<float>(kSpanColumns);
    sum = pieces.next<float>(kSpanColumns);
    keep = pieces.next<float>(kStrip);
  }
};

template <typename Matrix, typename T>
static void span_forward(const PackedAttention& args, const SpanPart& part, T* out, float* lse, void* scratch) {
  int64_t size = args.head_size, width = whole_chunks(size);
  Pieces pieces{static_cast<char*>(scratch)};
  ForwardScratch<Matrix> work(pieces, width);
  Columns<T> columns(args, part);
  int strips = columns.strips(), chunks = int(width / kChunk);
  float scale = args.scale * 1.44269504f;  // exponents of two
  Matrix::pack_right_turned(columns.of(args.query), columns.padded, size, work.query);
  for (int c = 0; c < columns.padded; ++c) work.maximum[c] = -1e30f, work.sum[c] = 0.0f;

  int64_t last = columns.keys();
  for (int64_t first = 0; first < last; first += kSpanKeys) {
    const T* rows[kSpanKeys];
    key_rows(args.key, part, first, rows);
    Matrix::pack_left(rows, kSpanKeys, size, work.key);
    key_rows(args.value, part, first, rows);
    Matrix::pack_left_turned(rows, kSpanKeys, size, work.value);
    for (int strip = 0; strip < strips; ++strip) {
      int keys = columns.keys_of(strip, first);
      if (!keys) continue;
      Matrix::template multiply<false>(work.key, kSpanKeys * kChunk, work.query + strip * kStrip * width, width * 16,
                                       keys, chunks, work.scores, kStrip);
      alignas(64) int32_t limit[kStrip];
      for (int c = 0; c < kStrip; ++c) limit[c] = int32_t(columns.visible[strip * kStrip + c] - first);
      auto run = limit[0] < keys ? soften<Matrix, true> : soften<Matrix, false>;
      bool changed = run(work.scores, keys, limit, scale, work.maximum + strip * kStrip, work.sum + strip * kStrip,
                         work.keep, work.probability);
      float* mixed = work.out + strip * kStrip * width;
      if (changed && first)
        for (int h = 0; h < kStrip; h += 16) {
          Floats keep = load(work.keep + h);
          for (int64_t i = 0; i < width; ++i) store(mixed + i * kStrip + h, load(mixed + i * kStrip + h) * keep);
        }
      auto multiply = first ? Matrix::template multiply<true> : Matrix::template multiply<false>;
      multiply(work.value, width * kChunk, work.probability, kSpanKeys * 16, int(width), keys / kChunk, mixed, kStrip);
    }
  }

  for (int strip = 0; strip < strips; ++strip) {
    T* to[kStrip];
    alignas(64) float inverse[kStrip];
    for (int i = 0; i < kStrip; ++i) {
      int c = strip * kStrip + i;
      int64_t row = columns.token[c] * args.heads + columns.head[c];
      to[i] = c < columns.count ? out + row * size : nullptr;
      inverse[i] = 1.0f / work.sum[c];
      if (c < columns.count) lse[row] = work.maximum[c] * 0.693147181f + logf(work.sum[c]);
    }
    turn_out(work.out + strip * kStrip * width, inverse, size, to);
  }
}
