// Logits of 32 vocabulary rows for one or two token tiles: c[row * 32 + tile * 16 + token].
// Included inside the namespace of a level.
//
// Rows of the head stream through unpacked as the left factor; hidden states are packed once, tokens along the
// lanes. Each token's sum runs over D in the same order whatever stands beside it.

constexpr int kDepth = 64;  // values of D summed in one accumulator before it joins the total

PERILUNE_INLINE int64_t padded(int64_t width) { return (width + 31) / 32 * 32; }

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
        const T* row = static_cast<const T*>(head.hidden) + (first_token + t) * head.hidden_stride;
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

#if PERILUNE_TILES
// The same with the tile registers: bfloat16 pairs in, fp32 out.
struct TileProduct {
  static constexpr int64_t kStep = 512;  // values in a packed tile: 16 pairs of D by 16 tokens by 2

  static int64_t packed_bytes(int64_t width) { return padded(width) * kTile * 2; }
  static int64_t scratch_bytes(int64_t width) { return padded(width) * kRows * 2; }

  template <typename T>
  static void pack(const Head& head, int64_t first_token, void* tile) {
    uint16_t* to = static_cast<uint16_t*>(tile);
    for (int64_t k = 0; k < padded(head.width); ++k)
      for (int t = 0; t < kTile; ++t) {
        bool there = k < head.width && first_token + t < head.tokens;
        const uint16_t* row = static_cast<const uint16_t*>(head.hidden) + (first_token + t) * head.hidden_stride;
        to[k / 2 * 32 + t * 2 + k % 2] = there ? row[k] : 0;
      }
  }

  TileProduct(int64_t width, void* scratch) : width_(width), scratch_(static_cast<uint16_t*>(scratch)) {
    struct __attribute__((packed)) {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
  }
  ~TileProduct() { _tile_release(); }

  template <typename T>
  void take(const T* weight, int64_t first_row, int count) {
    const uint16_t* rows = reinterpret_cast<const uint16_t*>(weight) + first_row * width_;
    if (count == kRows && width_ % 32 == 0) {
      rows_ = rows;
      return;
    }
    int64_t stride = padded(width_);
    __builtin_memset(scratch_, 0, size_t(stride) * kRows * 2);
    for (int r = 0; r < count; ++r) __builtin_memcpy(scratch_ + r * stride, rows + r * width_, size_t(width_) * 2);
    rows_ = scratch_;
  }

  // The next block of rows is fetched while the first tiles of this one are multiplied.
  void run(const void* packed, int64_t tile, int tiles, float* c) const {
    int64_t stride = padded(width_), steps = stride / 32;
    const uint16_t *a0 = rows_, *a1 = rows_ + 16 * stride;
    const uint16_t* b0 = static_cast<const uint16_t*>(packed) + tile * steps * kStep;
    const uint16_t* b1 = b0 + steps * kStep;
    bool ahead = tile % kGroup == 0 && rows_ != scratch_;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < steps; ++k) {
      if (ahead)
        for (int r = 0; r < kRows; ++r) _mm_prefetch(rows_ + (kRows + r) * stride + k * 32, _MM_HINT_T1);
      _tile_loadd(4, a0 + k * 32, stride * 2);
      _tile_loadd(5, a1 + k * 32, stride * 2);
      _tile_loadd(6, b0 + k * kStep, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      if (tiles == 2) {
        _tile_loadd(7, b1 + k * kStep, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, c, 128);
    _tile_stored(2, c + 16 * 32, 128);
    _tile_stored(1, c + 16, 128);
    _tile_stored(3, c + 16 * 32 + 16, 128);
  }

  int64_t width_;
  uint16_t* scratch_;
  const uint16_t* rows_ = nullptr;
};
#endif
