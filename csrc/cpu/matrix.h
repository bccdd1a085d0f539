// Small products C += A B: how their factors are packed, and how they are multiplied. Included inside the
// namespace of a level.
//
// A stands in chunks of 32 values of the contraction, [contraction / 32][rows][32]; B in panels of 16 columns,
// [columns / 16][contraction][16]; C row by row. Rows, columns and contraction are multiples of 32, filled with
// zeros. Products of bfloat16 take two values of the contraction at a time: which two are a pair is up to whoever
// packs, as long as both factors agree.

constexpr int kChunk = 32;

PERILUNE_INLINE int64_t whole_chunks(int64_t size) { return (size + kChunk - 1) / kChunk * kChunk; }

// One register of floats: sixteen lanes that do not fit one would live in memory, which products and the softmax
// can not afford.
constexpr int kLanes = PERILUNE_LANES;
typedef float Register __attribute__((vector_size(kLanes * 4)));
typedef int32_t RegisterInts __attribute__((vector_size(kLanes * 4)));
typedef uint32_t RegisterWords __attribute__((vector_size(kLanes * 4)));

PERILUNE_INLINE Register spread(float x) {
#if PERILUNE_LANES == 16
  return all(x);
#elif PERILUNE_LANES == 8
  return Register{x, x, x, x, x, x, x, x};
#else
  return Register{x, x, x, x};
#endif
}

PERILUNE_INLINE Register load_register(const float* from) {
  Register value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

PERILUNE_INLINE void store_register(float* to, Register value) { __builtin_memcpy(to, &value, sizeof value); }

// Sixteen rows of sixteen words; word i of row j becomes word j of row i. `to` may be where they stand.
static void transpose(const Words rows[16], void* to) {
#if PERILUNE_WIDE
  const __m512i* r = reinterpret_cast<const __m512i*>(rows);
  __m512i* out = static_cast<__m512i*>(to);
  __m512i quads[4][4];  // [i][c]: columns c, c + 4, c + 8, c + 12 of rows 4i .. 4i + 3
  for (int i = 0; i < 4; ++i) {
    __m512i low0 = _mm512_unpacklo_epi32(r[4 * i], r[4 * i + 1]), high0 = _mm512_unpackhi_epi32(r[4 * i], r[4 * i + 1]);
    __m512i low1 = _mm512_unpacklo_epi32(r[4 * i + 2], r[4 * i + 3]);
    __m512i high1 = _mm512_unpackhi_epi32(r[4 * i + 2], r[4 * i + 3]);
    quads[i][0] = _mm512_unpacklo_epi64(low0, low1);
    quads[i][1] = _mm512_unpackhi_epi64(low0, low1);
    quads[i][2] = _mm512_unpacklo_epi64(high0, high1);
    quads[i][3] = _mm512_unpackhi_epi64(high0, high1);
  }
  for (int c = 0; c < 4; ++c) {
    __m512i even0 = _mm512_shuffle_i32x4(quads[0][c], quads[1][c], 0x88);
    __m512i odd0 = _mm512_shuffle_i32x4(quads[0][c], quads[1][c], 0xdd);
    __m512i even1 = _mm512_shuffle_i32x4(quads[2][c], quads[3][c], 0x88);
    __m512i odd1 = _mm512_shuffle_i32x4(quads[2][c], quads[3][c], 0xdd);
    _mm512_storeu_si512(out + c, _mm512_shuffle_i32x4(even0, even1, 0x88));
    _mm512_storeu_si512(out + 4 + c, _mm512_shuffle_i32x4(odd0, odd1, 0x88));
    _mm512_storeu_si512(out + 8 + c, _mm512_shuffle_i32x4(even0, even1, 0xdd));
    _mm512_storeu_si512(out + 12 + c, _mm512_shuffle_i32x4(odd0, odd1, 0xdd));
  }
#else
  uint32_t from[16][16], turned[16][16];
  __builtin_memcpy(from, rows, sizeof from);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) turned[i][j] = from[j][i];
  __builtin_memcpy(to, turned, sizeof turned);
#endif
}

// Sixteen values of a row from `at` on; zeros where it ends, and for a row that is not there.
template <typename T>
PERILUNE_INLINE Floats take(const T* row, int64_t at, int64_t size) {
  return row && at < size ? load_some(row + at, size - at) : all(0.0f);
}

// Factors in fp32, products with fused multiply-adds. A row is null where nothing stands.
struct FloatMatrix {
  typedef float Value;

  // A: rows as they are.
  template <typename T>
  static void pack_left(const T* const* rows, int count, int64_t size, float* a) {
    for (int64_t at = 0; at < whole_chunks(size); at += kChunk)
      for (int r = 0; r < count; ++r, a += kChunk) {
        store(a, take(rows[r], at, size));
        store(a + 16, take(rows[r], at + 16, size));
      }
  }

  // A: the transposed of the rows.
  template <typename T>
  static void pack_left_turned(const T* const* rows, int count, int64_t size, float* a) {
    int64_t width = whole_chunks(size);
    for (int first = 0; first < count; first += 16)
      for (int64_t at = 0; at < width; at += 16) {
        Words block[16];
        for (int i = 0; i < 16; ++i) block[i] = (Words)take(rows[first + i], at, size);
        transpose(block, block);
        float* to = a + (first / kChunk * width + at) * kChunk + first % kChunk;
        for (int i = 0; i < 16; ++i) store(to + i * kChunk, (Floats)block[i]);
      }
  }

  // B: rows as they are, `capacity` of them to a panel.
  template <typename T>
  static void pack_right(const T* const* rows, int count, int64_t size, int64_t capacity, float* b) {
    for (int64_t at = 0; at < whole_chunks(size); at += 16)
      for (int r = 0; r < count; ++r) store(b + at * capacity + r * 16, take(rows[r], at, size));
  }

  // B: the transposed of the rows.
  template <typename T>
  static void pack_right_turned(const T* const* rows, int count, int64_t size, float* b) {
    for (int first = 0; first < count; first += 16)
      for (int64_t at = 0; at < whole_chunks(size); at += 16, b += 256) {
        Words block[16];
        for (int i = 0; i < 16; ++i) block[i] = (Words)take(rows[first + i], at, size);
        transpose(block, block);
        for (int i = 0; i < 16; ++i) store(b + i * 16, (Floats)block[i]);
      }
  }

  // Two registers side by side in a row of A, and one below the other in a panel of B.
  PERILUNE_INLINE void put_columns(float* row, Register first, Register second) {
    store_register(row, first);
    store_register(row + kLanes, second);
  }
  PERILUNE_INLINE void put_rows(float* panel, Register first, Register second) {
    store_register(panel, first);
    store_register(panel + 16, second);
  }

  // 32 columns of a product with a B from `pack_right`, in order.
  PERILUNE_INLINE void put_product(const float* c, float factor, float* to, int64_t left) {
    store_some(to, load(c) * factor, left);
    if (left > 16) store_some(to + 16, load(c + 16) * factor, left - 16);
  }
  PERILUNE_INLINE void put_product(const float* c, float factor, uint16_t* to, int64_t left) {
    store_some(to, load(c) * factor, left);
    if (left > 16) store_some(to + 16, load(c + 16) * factor, left - 16);
  }

  static constexpr int kRowsAtOnce = kLanes == 16 ? 8 : 4;

  // Some rows of two registers of columns; `b` and `c` start at the first of these columns.
  template <bool add>
  PERILUNE_INLINE void multiply_rows(const float* a, int64_t a_chunk, const float* b, int64_t b_next, int chunks,
                                     float* c, int64_t c_row) {
    Register sum[kRowsAtOnce][2];
    for (int r = 0; r < kRowsAtOnce; ++r) sum[r][0] = sum[r][1] = spread(0.0f);
    for (int chunk = 0; chunk < chunks; ++chunk)
      for (int k = 0; k < kChunk; ++k) {
        const float* row = b + (chunk * kChunk + k) * 16;
        Register first = load_register(row), second = load_register(row + b_next);
        for (int r = 0; r < kRowsAtOnce; ++r) {
          Register left = spread(a[chunk * a_chunk + r * kChunk + k]);
          sum[r][0] += left * first;
          sum[r][1] += left * second;
        }
      }
    for (int r = 0; r < kRowsAtOnce; ++r)
      for (int i = 0; i < 2; ++i) {
        float* to = c + r * c_row + i * kLanes;
        store_register(to, add ? load_register(to) + sum[r][i] : sum[r][i]);
      }
  }

  // 32 columns of C: `rows` rows, `c_row` apart, from `chunks` chunks of A, `a_chunk` apart, and two panels of B.
  template <bool add>
  static void multiply(const float* a, int64_t a_chunk, const float* b, int64_t b_panel, int rows, int chunks,
                       float* c, int64_t c_row) {
    int64_t b_next = kLanes == 16 ? b_panel : kLanes;
    for (int column = 0; column < 32; column += 2 * kLanes)
      for (int r = 0; r < rows; r += kRowsAtOnce)
        multiply_rows<add>(a + r * kChunk, a_chunk, b + column / 16 * b_panel + column % 16, b_next, chunks,
                           c + r * c_row + column, c_row);
  }
};

#if PERILUNE_DOTS
// Factors in bfloat16, pairs of the contraction side by side.
struct PairMatrix {
  typedef uint16_t Value;

  // 32 values from `at` on.
  PERILUNE_INLINE Words take_words(const uint16_t* row, int64_t at, int64_t size) {
    if (!row || at >= size) return all(uint32_t(0));
    __mmask32 there = size - at >= 32 ? ~0u : (1u << (size - at)) - 1;
    return (Words)_mm512_maskz_loadu_epi16(there, row + at);
  }

  PERILUNE_INLINE Words low_halves(Words first, Words second) { return (first & 0xffffu) | (second << 16); }
  PERILUNE_INLINE Words high_halves(Words first, Words second) { return (first >> 16) | (second & 0xffff0000u); }

  // The nearest bfloat16 of both; ties away from zero.
  PERILUNE_INLINE Words pair(Floats first, Floats second) {
    return high_halves((Words)first + 0x8000u, (Words)second + 0x8000u);
  }

  PERILUNE_INLINE void put(uint16_t* to, Words words) { __builtin_memcpy(to, &words, sizeof words); }

  static void pack_left(const uint16_t* const* rows, int count, int64_t size, uint16_t* a) {
    for (int64_t at = 0; at < size; at += kChunk)
      for (int r = 0; r < count; ++r, a += kChunk) put(a, take_words(rows[r], at, size));
  }

  // Rows 2p and 2p + 1 are a pair, as in `put_rows`.
  static void pack_left_turned(const uint16_t* const* rows, int count, int64_t size, uint16_t* a) {
    for (int first = 0; first < count; first += kChunk)
      for (int64_t at = 0; at < size; at += kChunk) {
        Words even[16], odd[16];
        for (int p = 0; p < 16; ++p) {
          Words one = take_words(rows[first + 2 * p], at, size), two = take_words(rows[first + 2 * p + 1], at, size);
          even[p] = low_halves(one, two);
          odd[p] = high_halves(one, two);
        }
        transpose(even, even);
        transpose(odd, odd);
        for (int p = 0; p < 16; ++p, a += 2 * kChunk) {
          put(a, even[p]);
          put(a + kChunk, odd[p]);
        }
      }
  }

  // Rows p and p + 16 of a chunk are a pair, as in `put_columns`; each two panels hold the even and the odd columns.
  static void pack_right(const uint16_t* const* rows, int count, int64_t size, int64_t capacity, uint16_t* b) {
    for (int64_t at = 0; at < size; at += kChunk)
      for (int first = 0; first < count; first += kChunk)
        for (int p = 0; p < 16; ++p) {
          Words one = take_words(rows[first + p], at, size), two = take_words(rows[first + 16 + p], at, size);
          uint16_t* to = b + at * capacity + (first / 2 + p) * 32;
          put(to, low_halves(one, two));
          put(to + capacity * 16, high_halves(one, two));
        }
  }

  static void pack_right_turned(const uint16_t* const* rows, int count, int64_t size, uint16_t* b) {
    for (int first = 0; first < count; first += 16)
      for (int64_t at = 0; at < size; at += kChunk) {
        Words block[16];
        for (int i = 0; i < 16; ++i) block[i] = take_words(rows[first + i], at, size);
        transpose(block, block);
        for (int i = 0; i < 16; ++i, b += 32) put(b, block[i]);
      }
  }

  PERILUNE_INLINE void put_columns(uint16_t* row, Floats first, Floats second) { put(row, pair(first, second)); }
  PERILUNE_INLINE void put_rows(uint16_t* panel, Floats first, Floats second) { put(panel, pair(first, second)); }

  PERILUNE_INLINE void put_product(const float* c, float factor, uint16_t* to, int64_t left) {
    Words words = low_halves(nearest_half(load(c) * factor), nearest_half(load(c + 16) * factor));
    if (left >= 32) return put(to, words);
    _mm512_mask_storeu_epi16(to, (1u << left) - 1, (__m512i)words);
  }
};
#endif

#if PERILUNE_TILES
// Holds the tile registers, all of them sixteen rows of 64 bytes.
struct TileRegisters {
  TileRegisters() {
    struct __attribute__((packed)) {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
    // GCC believes that the instruction reads eight bytes; all of them have to be in memory.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  ~TileRegisters() { _tile_release(); }
};

// Products in the tile registers.
struct TileMatrix : PairMatrix {
  template <bool add>
  static void multiply(const uint16_t* a, int64_t a_chunk, const uint16_t* b, int64_t b_panel, int rows, int chunks,
                       float* c, int64_t c_row) {
    asm volatile("" ::: "memory");  // GCC's tile intrinsics do not say that they read and write memory
    for (int r = 0; r < rows; r += 32, a += 32 * kChunk, c += 32 * c_row) {
      if (add) {
        _tile_loadd(0, c, c_row * 4);
        _tile_loadd(1, c + 16, c_row * 4);
        _tile_loadd(2, c + 16 * c_row, c_row * 4);
        _tile_loadd(3, c + 16 * c_row + 16, c_row * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int k = 0; k < chunks; ++k) {
        _tile_loadd(4, a + k * a_chunk, 64);
        _tile_loadd(6, b + k * 512, 64);
        _tile_loadd(7, b + b_panel + k * 512, 64);
        _tile_loadd(5, a + k * a_chunk + 16 * kChunk, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, c, c_row * 4);
      _tile_stored(1, c + 16, c_row * 4);
      _tile_stored(2, c + 16 * c_row, c_row * 4);
      _tile_stored(3, c + 16 * c_row + 16, c_row * 4);
    }
    asm volatile("" ::: "memory");
  }
};
#endif
