// The gradient of attention of the tokens of a span. Included inside the namespace of a level, after span.h.
//
// Probabilities are made again from the log of their sum. With p the probabilities and g the upstream gradient:
//
//   d_value += p^T g        s = p * (g value^T - sum(g * out))        d_query = s key        d_key += s^T query
//
// all but the last factor `scale`, which the ends multiply in.

// p and s of a strip: as factors of the products over columns (p, s) and over keys (turned).
template <typename Matrix, bool masked>
static void slope(const float* scores, const float* gains, int keys, const int32_t* limit, float scale,
                  const float* lse, const float* delta, typename Matrix::Value* p, typename Matrix::Value* s,
                  typename Matrix::Value* turned) {
  constexpr bool precise = sizeof(typename Matrix::Value) == 4;
  for (int column = 0; column < kStrip; column += 2 * kLanes) {
    Register below[2], mean[2];
    for (int h = 0; h < 2; ++h) {
      below[h] = load_register(lse + column + h * kLanes);
      mean[h] = load_register(delta + column + h * kLanes);
    }
    for (int k = 0; k < keys; k += 2) {
      Register probability[2][2], product[2][2];
      for (int i = 0; i < 2; ++i)
        for (int h = 0; h < 2; ++h) {
          int c = column + h * kLanes, at = (k + i) * kStrip + c;
          Register score = seen<masked>(load_register(scores + at) * scale - below[h], limit + c, k + i);
          probability[i][h] = power<precise>(score);
          product[i][h] = probability[i][h] * (load_register(gains + at) - mean[h]);
        }
      for (int i = 0; i < 2; ++i) {
        Matrix::put_columns(p + (k + i) * kChunk + column, probability[i][0], probability[i][1]);
        Matrix::put_columns(s + (k + i) * kChunk + column, product[i][0], product[i][1]);
      }
      for (int h = 0; h < 2; ++h) {
        int c = column + h * kLanes;
        Matrix::put_rows(turned + c / 16 * kSpanKeys * 16 + k * 16 + c % 16, product[0][h], product[1][h]);
      }
    }
  }
}

template <typename Matrix>
struct BackwardScratch {
  typedef typename Matrix::Value Value;
  Value *query, *gradient, *query_rows, *gradient_rows, *key, *value, *key_turned, *p, *s, *s_turned;
  float *scores, *gains, *d_query, *product, *lse, *delta;

  BackwardScratch(Pieces& pieces, int64_t width) {
    query = pieces.next<Value>(width * kSpanColumns);
    gradient = pieces.next<Value>(width * kSpanColumns);
    query_rows = pieces.next<Value>(width * kSpanColumns);
    gradient_rows = pieces.next<Value>(width * kSpanColumns);
    key = pieces.next<Value>(width * kSpanKeys);
    value = pieces.next<Value>(width * kSpanKeys);
    key_turned = pieces.next<Value>(width * kSpanKeys);
    p = pieces.next<Value>(kSpanKeys * kSpanColumns);
    s = pieces.next<Value>(kSpanKeys * kSpanColumns);
    s_turned = pieces.next<Value>(kSpanKeys * kStrip);
    scores = pieces.next<float>(kSpanKeys * kStrip);
    gains = pieces.next<float>(kSpanKeys * kStrip);
    d_query = pieces.next<float>(width * kSpanColumns);
    product = pieces.next<float>(width * kSpanKeys);
    lse = pieces.next<float>(kSpanColumns);
    delta = pieces.next<float>(kSpanColumns);
  }
};

// Adds `factor^T right` over the strips to the rows of the sums, `which` of the two.
template <typename Matrix>
static void add_to_sums(const typename Matrix::Value* factor, const typename Matrix::Value* right,
                        const int* first_strip, int strips, const int64_t* tokens, const KeySums& sums, int64_t width,
                        int which, float* product) {
  for (int group = 0; group < kSpanKeys / 32; ++group) {
    int from = first_strip[group];
    if (from >= strips) continue;
    for (int64_t at = 0; at < width; at += 32)
      Matrix::template multiply<false>(factor + from * kSpanKeys * kChunk + group * 32 * kChunk, kSpanKeys * kChunk,
                                       right + at * kSpanColumns + from * kStrip * 16, kSpanColumns * 16, 32,
                                       strips - from, product + at, width);
    for (int k = 0; k < 32; ++k) {
      int64_t token = tokens[group * 32 + k];
      if (token < sums.first_token || token >= sums.last_token) continue;
      float* to = sums.data + ((token - sums.first_token) * 2 + which) * width;
      for (int64_t i = 0; i < width; i += 16) store(to + i, load(to + i) + load(product + k * width + i));
    }
  }
}

template <typename T>
PERILUNE_INLINE float dot(const T* a, const T* b, int64_t size) {
  Floats sum = all(0.0f);
  for (int64_t i = 0; i < size; i += 16) sum += take(a, i, size) * take(b, i, size);
  return total(sum);
}

template <typename Matrix, typename T>
static void span_backward(const PackedGradient& args, const SpanPart& part, bool want_query, const KeySums& sums,
                          void* scratch) {
  const PackedAttention& forward = args.forward;
  int64_t size = forward.head_size, width = whole_chunks(size), heads = forward.heads;
  Pieces pieces{static_cast<char*>(scratch)};
  BackwardScratch<Matrix> work(pieces, width);
  Columns<T> columns(forward, part);
  int strips = columns.strips(), chunks = int(width / kChunk);
  float scale = forward.scale * 1.44269504f;  // exponents of two
  const T* outs[kSpanColumns];
  __builtin_memcpy(outs, columns.of(args.out), size_t(columns.padded) * sizeof outs[0]);
  const T* const* rows = columns.of(args.gradient);
  Matrix::pack_right_turned(rows, columns.padded, size, work.gradient);
  if (sums.data) Matrix::pack_right(rows, columns.padded, size, kSpanColumns, work.gradient_rows);
  for (int c = 0; c < columns.padded; ++c) {
    bool there = c < columns.count;
    work.lse[c] = there ? args.lse[columns.token[c] * heads + columns.head[c]] * 1.44269504f : 0.0f;
    work.delta[c] = there ? dot(rows[c], outs[c], size) : 0.0f;
  }
  rows = columns.of(forward.query);
  Matrix::pack_right_turned(rows, columns.padded, size, work.query);
  if (sums.data) Matrix::pack_right(rows, columns.padded, size, kSpanColumns, work.query_rows);

  int64_t last = columns.keys();
  for (int64_t first = 0; first < last; first += kSpanKeys) {
    int64_t tokens[kSpanKeys];
    bool wanted = want_query;
    for (int k = 0; k < kSpanKeys; ++k) {
      tokens[k] = first + k < last ? token_of(part.span, first + k) : -1;
      wanted |= tokens[k] >= sums.first_token && tokens[k] < sums.last_token;
    }
    if (!wanted) continue;
    const T* keys_here[kSpanKeys];
    key_rows(forward.key, part, first, keys_here);
    Matrix::pack_left(keys_here, kSpanKeys, size, work.key);
    if (want_query) Matrix::pack_left_turned(keys_here, kSpanKeys, size, work.key_turned);
    key_rows(forward.value, part, first, keys_here);
    Matrix::pack_left(keys_here, kSpanKeys, size, work.value);
    int first_strip[kSpanKeys / 32];  // that sees a key of the group
    for (int group = 0; group < kSpanKeys / 32; ++group)
      for (first_strip[group] = 0; first_strip[group] < strips; ++first_strip[group])
        if (columns.keys_of(first_strip[group], first) > group * 32) break;
    for (int strip = first_strip[0]; strip < strips; ++strip) {
      int keys = columns.keys_of(strip, first);
      int64_t at = strip * kStrip * width, block = strip * kSpanKeys * kChunk;
      Matrix::template multiply<false>(work.key, kSpanKeys * kChunk, work.query + at, width * 16, keys, chunks,
                                       work.scores, kStrip);
      Matrix::template multiply<false>(work.value, kSpanKeys * kChunk, work.gradient + at, width * 16, keys, chunks,
                                       work.gains, kStrip);
      alignas(64) int32_t limit[kStrip];
      for (int c = 0; c < kStrip; ++c) limit[c] = int32_t(columns.visible[strip * kStrip + c] - first);
      auto run = limit[0] < keys ? slope<Matrix, true> : slope<Matrix, false>;
      run(work.scores, work.gains, keys, limit, scale, work.lse + strip * kStrip, work.delta + strip * kStrip,
          work.p + block, work.s + block, work.s_turned);
      if (!want_query) continue;
      auto add = first ? Matrix::template multiply<true> : Matrix::template multiply<false>;
      add(work.key_turned, width * kChunk, work.s_turned, kSpanKeys * 16, int(width), keys / kChunk,
          work.d_query + at, kStrip);
    }
    if (!sums.data) continue;
    add_to_sums<Matrix>(work.s, work.query_rows, first_strip, strips, tokens, sums, width, 0, work.product);
    add_to_sums<Matrix>(work.p, work.gradient_rows, first_strip, strips, tokens, sums, width, 1, work.product);
  }

  if (!want_query) return;
  alignas(64) float factor[kStrip];
  for (float& f : factor) f = forward.scale;
  for (int strip = 0; strip < strips; ++strip) {
    T* to[kStrip];
    for (int i = 0; i < kStrip; ++i) {
      int c = strip * kStrip + i;
      T* row = static_cast<T*>(args.d_query) + (columns.token[c] * heads + columns.head[c]) * size;
      to[i] = c < columns.count ? row : nullptr;
    }
    turn_out(work.d_query + strip * kStrip * width, factor, size, to);
  }
}

// The sums of all tokens of `sums` are the gradients of one shared head.
template <typename Matrix, typename T>
static void write_sums(const PackedGradient& args, int64_t shared_head, const KeySums& sums) {
  int64_t size = args.forward.head_size, width = whole_chunks(size);
  for (int64_t token = sums.first_token; token < sums.last_token; ++token) {
    const float* from = sums.data + (token - sums.first_token) * 2 * width;
    int64_t row = (token * args.forward.shared_heads + shared_head) * size;
    for (int64_t at = 0; at < size; at += 32) {
      Matrix::put_product(from + at, args.forward.scale, static_cast<T*>(args.d_key) + row + at, size - at);
      Matrix::put_product(from + width + at, 1.0f, static_cast<T*>(args.d_value) + row + at, size - at);
    }
  }
}
