// Element-wise work on rows that do not know each other. Included inside the namespace of a level.
//
// Every step that torch would store is rounded as torch would round it: what it computes as separate ops comes
// out the same here.

template <typename T>
static void norm_row(const T* hidden, const T* update, const T* weight, T* sum, T* out, int64_t width,
                     float epsilon) {
  Floats squares = all(0.0f);
  for (int64_t i = 0; i < width; i += 16) {
    Floats x = load_some(hidden + i, width - i);
    if (update) {
      x = rounded<T>(x + load_some(update + i, width - i));
      store_some(sum + i, x, width - i);
    }
    squares += x * x;
  }
  const T* normed = update ? sum : hidden;
  float inverse = 1.0f / sqrtf(total(squares) / float(width) + epsilon);
  for (int64_t i = 0; i < width; i += 16) {
    Floats x = rounded<T>(load_some(normed + i, width - i) * inverse);
    store_some(out + i, x * load_some(weight + i, width - i), width - i);
  }
}

template <typename T>
static void norm_rows(const RmsNorm& args, int64_t first, int64_t last) {
  const T *hidden = static_cast<const T*>(args.hidden), *update = static_cast<const T*>(args.update);
  T *sum = static_cast<T*>(args.sum), *out = static_cast<T*>(args.out);
  for (int64_t row = first; row < last; ++row) {
    int64_t at = row * args.width;
    norm_row(hidden + at, update ? update + at : update, static_cast<const T*>(args.weight), update ? sum + at : sum,
             out + at, args.width, args.epsilon);
  }
}

template <typename T>
static void rotate_head(const T* from, const T* cosine, const T* sine, int64_t half, T* to) {
  for (int64_t i = 0; i < half; i += 16) {
    int64_t left = half - i;
    Floats a = load_some(from + i, left), b = load_some(from + half + i, left);
    Floats first = rounded<T>(a * load_some(cosine + i, left)) - rounded<T>(b * load_some(sine + i, left));
    Floats second =
        rounded<T>(b * load_some(cosine + half + i, left)) + rounded<T>(a * load_some(sine + half + i, left));
    store_some(to + i, first, left);
    store_some(to + half + i, second, left);
  }
}

template <typename T>
static void rotate_rows(const Rotary& args, int64_t begin, int64_t end) {
  int64_t size = args.head_size, half = size / 2, heads = args.heads, shared = args.shared_heads;
  for (int64_t token = begin; token < end; ++token) {
    int64_t position = args.position[token], place = position < 0 ? 0 : position;
    const T* from = static_cast<const T*>(args.fused) + token * (heads + 2 * shared) * size;
    const T* cosine = static_cast<const T*>(args.cosine) + place * size;
    const T* sine = static_cast<const T*>(args.sine) + place * size;
    T* query = static_cast<T*>(args.query) + token * heads * size;
    for (int64_t h = 0; h < heads; ++h) rotate_head(from + h * size, cosine, sine, half, query + h * size);
    if (position < 0) continue;
    int64_t row = (args.slot[token] * args.capacity + position) * shared * size;
    const T *key = from + heads * size, *value = key + shared * size;
    for (int64_t h = 0; h < shared; ++h)
      rotate_head(key + h * size, cosine, sine, half, static_cast<T*>(args.keys) + row + h * size);
    __builtin_memcpy(static_cast<T*>(args.values) + row, value, size_t(shared * size) * sizeof(T));
  }
}

// x / (1 + exp(-x)) without a positive exponent; -0 below -87, where exp() ends.
PERILUNE_INLINE Floats silu(Floats x) {
  Floats small = exponential((Floats)((Words)x | 0x80000000u));  // of -|x|
  return (x < all(0.0f) ? x * small : x) / (small + 1.0f);
}

template <typename T>
static void gate_rows(const GatedSilu& args, int64_t first, int64_t last) {
  int64_t width = args.width;
  for (int64_t row = first; row < last; ++row) {
    const T *gate = static_cast<const T*>(args.gate_up) + row * 2 * width, *up = gate + width;
    T* out = static_cast<T*>(args.out) + row * width;
    for (int64_t i = 0; i < width; i += 16) {
      Floats activated = rounded<T>(silu(load_some(gate + i, width - i)));
      store_some(out + i, activated * load_some(up + i, width - i), width - i);
    }
  }
}
