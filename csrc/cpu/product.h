// Logits of 32 vocabulary rows for one or two token tiles: c[row * 32 + tile * 16 + token].
// Included inside the namespace of a level.
//
// Rows of the head stream through unpacked as the left factor; hidden states are packed once, tokens along the
// lanes. Each token's sum runs over D in the same order whatever stands beside it.

constexpr int kDepth = 64;  // values of D summed in one accumulator before it joins the total

// Where the hidden state of a token begins, in values.
PERILUNE_INLINE int64_t row_of(const Head& head, int64_t token) {
  return (head.rows ? head.rows[token] : token) * head.hidden_stride;
}

PERILUNE_INLINE int64_t padded(int64_t width) { return (width + 31) / 32 * 32; }

// Sixteen tokens' hidden states as pairs of D by tokens.
PERILUNE_INLINE void pack_pairs(const Head& head, int64_t first_token, uint16_t* to) {
  for (int64_t k = 0; k < padded(head.width); ++k)
    for (int t = 0; t < kTile; ++t) {
      bool there = k < head.width && first_token + t < head.tokens;
      const uint16_t* row = static_cast<const uint16_t*>(head.hidden) + (there ? row_of(head, first_token + t) : 0);
      to[k / 2 * 32 + t * 2 + k % 2] = there ? row[k] : 0;
    }
}

// Rows first_row..+count of the head as `padded(width)` floats each, zero where they end, in scratch.
template <typename T>
PERILUNE_INLINE const float* widen(const T* weight, int64_t width, int64_t first_row, int count, float* scratch) {
  int64_t stride = padded(width);
  for (int row = 0; row < kRows; ++row)
    for (int64_t k = 0; k < stride; k += 16) {
      int64_t left = row < count ? width - k : 0;
      store(scratch + row * stride + k,
            left > 0 ? load_some(weight + (first_row + row) * width + k, left) : all(0.0f));
    }
  return scratch;
}

template <int rows, int tiles>
PERILUNE_INLINE void multiply_rows(const float* w, const float* x, int64_t width, int64_t tile_stride, float* c) {
  for (int64_t begin = 0; begin < width; begin += kDepth) {
    int64_t end = begin + kDepth < width ? begin + kDepth : width;
    Floats sum[rows][tiles];
    for (int r = 0; r < rows; ++r)
      for (int t = 0; t < tiles; ++t) sum[r][t] = all(0.0f);
    for (int64_t k = begin; k < end; ++k)
      for (int t = 0; t < tiles; ++t) {
        Floats right = load(x + t * tile_stride + k * kTile);
        for (int r = 0; r < rows; ++r) sum[r][t] += all(w[r * width + k]) * right;
      }
    for (int r = 0; r < rows; ++r)
      for (int t = 0; t < tiles; ++t) {
        float* to = c + r * 32 + t * kTile;
        store(to, begin == 0 ? sum[r][t] : load(to) + sum[r][t]);
      }
  }
}

struct FloatProduct {
  static int64_t packed_bytes(int64_t width) { return padded(width) * kTile * int64_t(sizeof(float)); }
  static int64_t scratch_bytes(int64_t width) { return padded(width) * kRows * int64_t(sizeof(float)); }

  template <typename T>
  static void pack(const Head& head, int64_t first_token, void* tile) {
    float* to = static_cast<float*>(tile);
    for (int64_t k = 0; k < padded(head.width); ++k)
      for (int t = 0; t < kTile; ++t) {
        bool there = k < head.width && first_token + t < head.tokens;
        const T* row = static_cast<const T*>(head.hidden) + (there ? row_of(head, first_token + t) : 0);
        uint32_t bits = 0;
        if (there) {
          if (sizeof(T) == 2) bits = uint32_t(row[k]) << 16;
          else __builtin_memcpy(&bits, row + k, 4);
        }
        __builtin_memcpy(to + k * kTile + t, &bits, 4);
      }
  }

  FloatProduct(int64_t width, void* scratch) : width_(width), scratch_(static_cast<float*>(scratch)) {}

  template <typename T>
  void take(const T* weight, int64_t first_row, int count) {
    if (sizeof(T) == 4 && count == kRows && width_ % 32 == 0)
      rows_ = reinterpret_cast<const float*>(weight) + first_row * width_;
    else
      rows_ = widen(weight, width_, first_row, count, scratch_);
  }

  void run(const void* packed, int64_t tile, int tiles, float* c) const {
    int64_t stride = padded(width_), tile_stride = stride * kTile;
    const float* x = static_cast<const float*>(packed) + tile * tile_stride;
#if PERILUNE_WIDE
    constexpr int step = 8;
    if (tiles == 2) {
      for (int r = 0; r < kRows; r += step)
        multiply_rows<step, 2>(rows_ + r * stride, x, stride, tile_stride, c + r * 32);
      return;
    }
#else
    constexpr int step = 4;
#endif
    for (int t = 0; t < tiles; ++t)
      for (int r = 0; r < kRows; r += step)
        multiply_rows<step, 1>(rows_ + r * stride, x + t * tile_stride, stride, tile_stride,
                               c + r * 32 + t * kTile);
  }

  int64_t width_;
  float* scratch_;
  const float* rows_ = nullptr;
};
