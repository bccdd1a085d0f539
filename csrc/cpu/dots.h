// Products of bfloat16 in vector registers: one instruction adds two products to each of sixteen fp32 sums.
// Included inside the namespace of a level.
//
// The left factor stands in steps of 32 values of the contraction, wherever its rows and steps lie; two of its values
// are spread over the lanes at once. The right factor stands in panels of pairs by 16 columns, as for the tile registers.

// Where rows of the left factor stand, in values.
struct DotRows {
  const uint16_t* data;
  int64_t row, step;  // from one to the next
};

constexpr int kDotRows = 8;   // whose sums for 32 columns are held in registers
// Steps summed in one accumulator before it joins the total. The gradient's blocks are whole multiples of this many
// slices, so that its sums over rows do not depend on where a block ends.
constexpr int kDotSteps = 4;

PERILUNE_INLINE __m512bh pair_of(const uint16_t* two) {
  int32_t word;
  __builtin_memcpy(&word, two, sizeof word);
  return (__m512bh)_mm512_set1_epi32(word);
}

// Some rows by one or two panels; `right[i]` and `left` start at the first of `steps` steps.
template <int panels>
PERILUNE_INLINE void multiply_some(const DotRows& left, const uint16_t* const* right, int64_t steps, bool add,
                                   float* c, int64_t c_row) {
  __m512 sum[kDotRows][panels];
  for (int r = 0; r < kDotRows; ++r)
    for (int i = 0; i < panels; ++i) sum[r][i] = _mm512_setzero_ps();
  for (int64_t k = 0; k < steps; ++k)
    for (int pair = 0; pair < 16; ++pair) {
      __m512bh column[panels];
      for (int i = 0; i < panels; ++i)
        column[i] = (__m512bh)_mm512_loadu_si512(right[i] + (k * 16 + pair) * 32);
      for (int r = 0; r < kDotRows; ++r) {
        __m512bh two = pair_of(left.data + r * left.row + k * left.step + pair * 2);
        for (int i = 0; i < panels; ++i) sum[r][i] = _mm512_dpbf16_ps(sum[r][i], two, column[i]);
      }
    }
  for (int r = 0; r < kDotRows; ++r)
    for (int i = 0; i < panels; ++i) {
      float* to = c + r * c_row + i * 16;
      store(to, add ? load(to) + (Floats)sum[r][i] : (Floats)sum[r][i]);
    }
}

// c (+)= left right for `rows` rows, a multiple of kDotRows; each element's sum runs in the same order whatever stands
// beside it. All rows meet the same few lines of the right factor before the next ones are read.
template <int panels>
PERILUNE_INLINE void multiply_dots(const DotRows& left, int rows, const uint16_t* first, const uint16_t* second,
                                   int64_t steps, bool add, float* c, int64_t c_row) {
  for (int64_t k = 0; k < steps; k += kDotSteps) {
    const uint16_t* right[2] = {first + k * 512, second + k * 512};
    int64_t here = steps - k < kDotSteps ? steps - k : kDotSteps;
    for (int r = 0; r < rows; r += kDotRows)
      multiply_some<panels>({left.data + r * left.row + k * left.step, left.row, left.step}, right, here,
                            add || k > 0, c + r * c_row, c_row);
  }
}

// Logits of 32 vocabulary rows for one or two token tiles. Rows of the head are read where they stand.
struct DotProduct {
  static int64_t packed_bytes(int64_t width) { return padded(width) * kTile * 2; }
  static int64_t scratch_bytes(int64_t width) { return padded(width) * kRows * 2; }

  template <typename T>
  static void pack(const Head& head, int64_t first_token, void* tile) {
    pack_pairs(head, first_token, static_cast<uint16_t*>(tile));
  }

  DotProduct(int64_t width, void* scratch)
      : width_(width), stride_(padded(width)), scratch_(static_cast<uint16_t*>(scratch)) {}

  template <typename T>
  void take(const T* weight, int64_t first_row, int count) {
    rows_ = reinterpret_cast<const uint16_t*>(weight) + first_row * width_;
    if (count == kRows && width_ % 32 == 0) return;
    __builtin_memset(scratch_, 0, size_t(stride_) * kRows * 2);
    for (int r = 0; r < count; ++r)
      __builtin_memcpy(scratch_ + r * stride_, rows_ + r * width_, size_t(width_) * 2);
    rows_ = scratch_;
  }

  void run(const void* packed, int64_t tile, int tiles, float* c) const {
    const uint16_t *x = static_cast<const uint16_t*>(packed) + tile * stride_ * kTile, *other = x + stride_ * kTile;
    DotRows rows{rows_, stride_, 32};
    if (tiles == 2) multiply_dots<2>(rows, kRows, x, other, stride_ / 32, false, c, 32);
    else multiply_dots<1>(rows, kRows, x, x, stride_ / 32, false, c, 32);
  }

  int64_t width_, stride_;
  uint16_t* scratch_;
  const uint16_t* rows_ = nullptr;
};

struct DotMatrix : PairMatrix {
  template <bool add>
  static void multiply(const uint16_t* a, int64_t a_chunk, const uint16_t* b, int64_t b_panel, int rows, int chunks,
                       float* c, int64_t c_row) {
    multiply_dots<2>({a, kChunk, a_chunk}, rows, b, b + b_panel, chunks, add, c, c_row);
  }
};

// There is nothing to hold.
struct SumRegisters {
  SumRegisters() {}
};

// Sums of 32 rows by 32 columns in the manner of the tile registers; all steps are taken when they are put.
struct BlockSums {
  const uint16_t *left, *right, *other;
  bool add = false;

  BlockSums(const uint16_t* left, const uint16_t* right, const uint16_t* other)
      : left(left), right(right), other(other) {}
  PERILUNE_INLINE_MEMBER void clear() { add = false; }
  PERILUNE_INLINE_MEMBER void load(const float*) { add = true; }  // those that `put` writes
  PERILUNE_INLINE_MEMBER void step(int64_t) {}
  PERILUNE_INLINE_MEMBER void put(float* c, int64_t steps) const {
    multiply_dots<2>({left, 32, 1024}, kRows, right, other, steps, add, c, 32);
  }
};
