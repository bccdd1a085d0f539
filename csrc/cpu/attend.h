// One token's query heads over the cache rows of their shared head. Included inside the namespace of a level.
//
// Keys come in blocks of 64 from the first row on, with a running maximum: the order of every sum depends on
// the position alone.

constexpr int kKeys = 64;

// Products of one key with the queries, not yet summed across lanes.
template <typename T, int parts, int heads>
PERILUNE_INLINE void multiply_key(const Floats (&q)[heads][parts], const T* row, int64_t size, Floats (&dot)[heads]) {
  for (int h = 0; h < heads; ++h) dot[h] = all(0.0f);
  for (int i = 0; i < parts; ++i) {
    if (i * 16 >= size) break;
    Floats part = load_some(row + i * 16, size - i * 16);
    for (int h = 0; h < heads; ++h) dot[h] += q[h][i] * part;
  }
}

#if PERILUNE_WIDE
// Sixteen keys: their sums across lanes cost as much as three keys one by one, and have the same bits.
template <typename T, int parts, int heads>
PERILUNE_INLINE void multiply_sixteen(const Floats (&q)[heads][parts], const T* keys, int64_t stride, int64_t size,
                                      float (&scores)[heads][kKeys], int first) {
  Floats quad[heads][4];
  for (int j = 0; j < 4; ++j) {  // keys j, j + 4, j + 8, j + 12: that leaves the sums in order
    Floats pair[2][heads];
    for (int half = 0; half < 2; ++half) {
      Floats a[heads], b[heads];
      multiply_key<T, parts, heads>(q, keys + (j + 8 * half) * stride, size, a);
      multiply_key<T, parts, heads>(q, keys + (j + 8 * half + 4) * stride, size, b);
      for (int h = 0; h < heads; ++h) pair[half][h] = fold_two(a[h], b[h]);
    }
    for (int h = 0; h < heads; ++h) quad[h][j] = fold_four(pair[0][h], pair[1][h]);
  }
  for (int h = 0; h < heads; ++h)
    store(scores[h] + first,
          fold_sixteen(fold_eight(quad[h][0], quad[h][1]), fold_eight(quad[h][2], quad[h][3])));
}
#endif

template <typename T, int parts, int heads>
static void attend_heads(const T* query, const T* keys, const T* values, int64_t count, int64_t stride, int64_t size,
                         float scale, T* out) {
  alignas(64) float scores[heads][kKeys];
  Floats q[heads][parts], sum[heads][parts], weight[heads];
  float maximum[heads];
  for (int h = 0; h < heads; ++h) {
    maximum[h] = -1e30f;
    weight[h] = all(0.0f);
    for (int i = 0; i < parts; ++i) {
      sum[h][i] = all(0.0f);
      q[h][i] = i * 16 < size ? load_some(query + h * size + i * 16, size - i * 16) * scale : all(0.0f);
    }
  }
  for (int64_t first = 0; first < count; first += kKeys) {
    int here = count - first < kKeys ? int(count - first) : kKeys;
    int done = 0;
#if PERILUNE_WIDE
    for (; done + 16 <= here; done += 16)
      multiply_sixteen<T, parts, heads>(q, keys + (first + done) * stride, stride, size, scores, done);
#endif
    for (int k = done; k < here; ++k) {
      Floats dot[heads];
      multiply_key<T, parts, heads>(q, keys + (first + k) * stride, size, dot);
      for (int h = 0; h < heads; ++h) scores[h][k] = total(dot[h]);
    }
    for (int h = 0; h < heads; ++h) {
      for (int k = here; k < kKeys; ++k) scores[h][k] = -1e30f;
      Floats most = load(scores[h]);
      for (int k = 16; k < kKeys; k += 16) most = larger(most, load(scores[h] + k));
      float now = largest(most);
      now = now > maximum[h] ? now : maximum[h];
      Floats keep = exponential(all(maximum[h] - now));
      maximum[h] = now;
      weight[h] *= keep;
      for (int i = 0; i < parts; ++i) sum[h][i] *= keep;
      for (int k = 0; k < kKeys; k += 16) {
        Floats e = exponential(load(scores[h] + k) - all(now));
        store(scores[h] + k, e);
        weight[h] += e;
      }
    }
    for (int k = 0; k < here; ++k) {
      const T* row = values + (first + k) * stride;
      for (int i = 0; i < parts; ++i) {
        if (i * 16 >= size) break;
        Floats part = load_some(row + i * 16, size - i * 16);
        for (int h = 0; h < heads; ++h) sum[h][i] += all(scores[h][k]) * part;
      }
    }
  }
  for (int h = 0; h < heads; ++h) {
    float inverse = 1.0f / total(weight[h]);
    for (int i = 0; i * 16 < size; ++i) store_some(out + h * size + i * 16, sum[h][i] * inverse, size - i * 16);
  }
}

template <typename T, int parts>
static void attend_group(const SlotAttention& args, int64_t token, int64_t shared) {
  int64_t group = args.heads / args.shared_heads, size = args.head_size, stride = args.shared_heads * size;
  int64_t count = args.position[token] + 1;
  int64_t offset = args.slot[token] * args.capacity * stride + shared * size;
  const T *keys = static_cast<const T*>(args.keys) + offset, *values = static_cast<const T*>(args.values) + offset;
  for (int64_t first = 0; first < group;) {
    int64_t head = (token * args.heads + shared * group + first) * size;
    const T* query = static_cast<const T*>(args.query) + head;
    T* out = static_cast<T*>(args.out) + head;
    int64_t left = group - first;
    if (count <= 0) {
      __builtin_memset(out, 0, size_t(left * size) * sizeof(T));
      return;
    }
    if (left >= 4) attend_heads<T, parts, 4>(query, keys, values, count, stride, size, args.scale, out);
    else if (left == 3) attend_heads<T, parts, 3>(query, keys, values, count, stride, size, args.scale, out);
    else if (left == 2) attend_heads<T, parts, 2>(query, keys, values, count, stride, size, args.scale, out);
    else attend_heads<T, parts, 1>(query, keys, values, count, stride, size, args.scale, out);
    first += left >= 4 ? 4 : left;
  }
}

template <typename T>
static void attend_any(const SlotAttention& args, int64_t token, int64_t shared) {
  if (args.head_size <= 64) attend_group<T, 4>(args, token, shared);
  else if (args.head_size <= 128) attend_group<T, 8>(args, token, shared);
  else attend_group<T, 16>(args, token, shared);
}
