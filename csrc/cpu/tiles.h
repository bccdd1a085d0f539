// The walk over a bfloat16 head with the tile registers: bfloat16 pairs in, fp32 out.
// Included inside the namespace of a level.
//
// A step multiplies 32 vocabulary rows by two token tiles over 32 values of D. Between the steps of one block the
// vector units take the statistics of the block before it, and copy the next rows of the head into tile order: rows
// a multiple of some power of two apart compete for the same lines of the first cache, tiles in a row do not.

struct TileProduct {
  static constexpr int64_t kStep = 512;  // values in a tile: 16 rows or pairs of 64 bytes
  static constexpr int64_t kFewTiles = 8;  // fewer do not repay the copy of the rows

  static int64_t packed_bytes(int64_t width) { return padded(width) * kTile * 2; }
  static int64_t scratch_bytes(int64_t width) { return 2 * padded(width) * kRows * 2; }

  template <typename T>
  static void pack(const Head& head, int64_t first_token, void* tile) {
    pack_pairs(head, first_token, static_cast<uint16_t*>(tile));
  }

  TileProduct(int64_t width, void* scratch)
      : width_(width), stride_(padded(width)), scratch_(static_cast<uint16_t*>(scratch)) {}

  // Rows first_row..+count of the head become the left factor.
  template <typename T>
  void take(const T* weight, int64_t first_row, int count) {
    const uint16_t* rows = reinterpret_cast<const uint16_t*>(weight) + first_row * width_;
    if (count == kRows && width_ % 32 == 0) return lie_apart(rows);
    uint16_t* to = scratch_ + turn_ * stride_ * kRows;
    __builtin_memset(to, 0, size_t(stride_) * kRows * 2);
    for (int r = 0; r < count; ++r) __builtin_memcpy(to + r * stride_, rows + r * width_, size_t(width_) * 2);
    lie_apart(to);
  }

  void run(const void* packed, int64_t tile, int tiles, float* c) const {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < stride_ / 32; ++k) step(packed, tile, tile + tiles - 1, k);
    put(c);
  }

  PERILUNE_INLINE_MEMBER void step(const void* packed, int64_t tile, int64_t other, int64_t k) const {
    const uint16_t* b = static_cast<const uint16_t*>(packed) + k * kStep;
    _tile_loadd(4, upper_ + k * between_, row_bytes_);
    _tile_loadd(6, b + tile * stride_ / 32 * kStep, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, lower_ + k * between_, row_bytes_);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, b + other * stride_ / 32 * kStep, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }

  PERILUNE_INLINE_MEMBER void put(float* c) const {
    _tile_stored(0, c, 128);
    _tile_stored(2, c + 16 * 32, 128);
    _tile_stored(1, c + 16, 128);
    _tile_stored(3, c + 16 * 32 + 16, 128);
  }

  // Whole rows, as they lie in the head or in scratch.
  void lie_apart(const uint16_t* rows) {
    upper_ = rows, lower_ = rows + 16 * stride_;
    between_ = 32, row_bytes_ = stride_ * 2;
  }

  // Tiles in a row, those of one step after those of the step before.
  void lie_packed(const uint16_t* tiles) {
    upper_ = tiles, lower_ = tiles + kStep;
    between_ = 2 * kStep, row_bytes_ = 64;
  }

  // Where the next block may be copied to while this one is multiplied.
  uint16_t* spare() const { return scratch_ + (turn_ ^ 1) * stride_ * kRows; }

  TileRegisters held_;
  int64_t width_, stride_;
  uint16_t* scratch_;
  int turn_ = 0;
  const uint16_t *upper_ = nullptr, *lower_ = nullptr;
  int64_t between_ = 0, row_bytes_ = 0;
};

// 64-byte lines of the next block of rows on their way into tile order.
struct RowCopy {
  const uint16_t* rows;
  uint16_t* tiles;
  int64_t stride, line, last;

  PERILUNE_INLINE_MEMBER void some(int64_t count) {
    int64_t until = line + count < last ? line + count : last;
    for (; line < until; ++line) {
      const uint16_t* from = rows + (line & 31) * stride + (line >> 5) * 32;
      if (tiles) _mm512_storeu_si512(tiles + line * 32, _mm512_loadu_si512(from));
      _mm_prefetch(rows + (tiles ? kRows * stride : 0) + line * 32, _MM_HINT_T1);
    }
  }
};

// A block whose statistics are to be taken: its logits, and the states and scales of its two token tiles.
struct Pending {
  const float* logits;
  TileState* state[2];
  const float* scale[2];
};

// Not inlined: one copy of these instructions serves every caller, so that sums agree bit for bit. Products are rounded
// before the maximum is taken off, as in accumulate().
static __attribute__((noinline)) void multiply_and_accumulate(const TileProduct& product, const void* packed,
                                                              int64_t tile, int64_t other, float* c,
                                                              const Pending& before, RowCopy& copy, int64_t lines) {
  Floats scale[2], maximum[2], sum[2], weighted[2];
  for (int i = 0; i < 2; ++i) {
    const float* z = before.logits + i * kTile;
    TileState& state = *before.state[i];
    scale[i] = load(before.scale[i]);
    Floats most[4];
    for (int j = 0; j < 4; ++j) most[j] = load(z + j * 32) * scale[i];
    for (int r = 4; r < kRows; r += 4)
      for (int j = 0; j < 4; ++j) most[j] = larger(most[j], load(z + (r + j) * 32) * scale[i]);
    Floats old = load(state.maximum);
    maximum[i] = larger(old, larger(larger(most[0], most[1]), larger(most[2], most[3])));
    Floats shift = old - maximum[i], keep = exponential(shift), s = load(state.sum);
    store(state.maximum, maximum[i]);
    sum[i] = s * keep;
    weighted[i] = (load(state.weighted) + s * shift) * keep;
  }
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  int64_t steps = product.stride_ / 32, turns = steps > kRows / 2 ? steps : kRows / 2;
  for (int64_t k = 0; k < turns; k += 2)
    for (int i = 0; i < 2; ++i) {
      if (k + i < steps) product.step(packed, tile, other, k + i);
      copy.some(lines);
      if (k >= kRows / 2) continue;
      const float* z = before.logits + i * kTile + k * 2 * 32;
      Floats below[4], e[4];
      for (int j = 0; j < 4; ++j) below[j] = rounded<float>(load(z + j * 32) * scale[i]) - maximum[i];
      for (int j = 0; j < 4; ++j) e[j] = exponential(below[j]);
      sum[i] += (e[0] + e[1]) + (e[2] + e[3]);
      weighted[i] += (e[0] * below[0] + e[1] * below[1]) + (e[2] * below[2] + e[3] * below[3]);
    }
  for (int i = 0; i < 2; ++i) {
    store(before.state[i]->sum, sum[i]);
    store(before.state[i]->weighted, weighted[i]);
  }
  product.put(c);
}

static void scan_tiles(const Scan& scan, int64_t first_row, int64_t last_row, int64_t first_tile, int64_t last_tile,
                       TileState* states, void* scratch) {
  alignas(64) float c[2][kRows * 32] = {};
  TileProduct product(scan.width, scratch);
  TileState spare;
  start(spare);
  for (int64_t tile = first_tile; tile < last_tile; ++tile) start(states[tile]);
  const uint16_t* weight = static_cast<const uint16_t*>(scan.weight);
  int64_t pairs = (last_tile - first_tile + 1) / 2, lines = (32 + pairs - 1) / pairs;
  bool copies = last_tile - first_tile >= TileProduct::kFewTiles && scan.width % 32 == 0, copied = false;
  const float* scales = scan.scale + first_tile * kTile;
  const Pending nothing{c[0], {&spare, &spare}, {scales, scales}};
  Pending pending = nothing;
  RowCopy idle{nullptr, nullptr, 0, 0, 0};
  int turn = 0;
  for (int64_t row = first_row; row < last_row; row += kRows) {
    int rows = last_row - row < kRows ? int(last_row - row) : kRows;
    if (copied) product.lie_packed(product.spare());
    else product.take(weight, row, rows);
    if (copied) product.turn_ ^= 1;
    if (rows < kRows) {  // the end of the vocabulary, for every token alike
      multiply_and_accumulate(product, scan.packed, first_tile, first_tile, c[turn], pending, idle, 0);
      pending = nothing;
    }
    copied = copies && row + 2 * kRows <= last_row;
    int64_t fetched = row + 2 * kRows <= last_row ? product.stride_ : 0;
    RowCopy copy{weight + (row + kRows) * scan.width, copied ? product.spare() : nullptr, scan.width, 0, fetched};
    for (int64_t tile = first_tile; tile < last_tile; tile += 2) {
      int64_t other = tile + 1 < last_tile ? tile + 1 : tile;
      if (rows == kRows) multiply_and_accumulate(product, scan.packed, tile, other, c[turn], pending, copy, lines);
      else product.run(scan.packed, tile, int(other - tile + 1), c[turn]);
      for (int64_t one = tile; one <= other; ++one) {
        const float *logits = c[turn] + (one - tile) * kTile, *scale = scan.scale + one * kTile;
        if (rows < kRows) accumulate(logits, rows, load(scale), states[one]);
        if (scan.target) pick_targets(logits, rows, row, scale, scan.target + one * kTile, states[one]);
        else draw(logits, rows, row, load(scale), scan, one * kTile, states[one]);
      }
      if (rows < kRows) continue;
      pending = {c[turn], {states + tile, other > tile ? states + other : &spare},
                 {scan.scale + tile * kTile, scan.scale + other * kTile}};
      turn ^= 1;
    }
  }
  multiply_and_accumulate(product, scan.packed, first_tile, first_tile, c[turn], pending, idle, 0);
}

PERILUNE_INLINE void multiply_step(const uint16_t* left, const uint16_t* right0, const uint16_t* right1, int64_t k) {
  constexpr int64_t kStep = TileProduct::kStep;
  _tile_loadd(4, left + 2 * k * kStep, 64);
  _tile_loadd(6, right0 + k * kStep, 64);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(5, left + (2 * k + 1) * kStep, 64);
  _tile_dpbf16ps(2, 5, 6);
  _tile_loadd(7, right1 + k * kStep, 64);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(3, 5, 7);
}

PERILUNE_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

PERILUNE_INLINE void put_sums(float* c) {
  _tile_stored(0, c, 128);
  _tile_stored(1, c + 16, 128);
  _tile_stored(2, c + 16 * 32, 128);
  _tile_stored(3, c + 16 * 32 + 16, 128);
}

typedef TileRegisters SumRegisters;

// Sums of 32 rows by 32 columns in the tile registers: `left` are pairs of tiles, `right` and `other` single ones.
struct BlockSums {
  const uint16_t *left, *right, *other;

  PERILUNE_INLINE_MEMBER void clear() const { clear_sums(); }
  PERILUNE_INLINE_MEMBER void load(const float* c) const {
    _tile_loadd(0, c, 128);
    _tile_loadd(1, c + 16, 128);
    _tile_loadd(2, c + 16 * 32, 128);
    _tile_loadd(3, c + 16 * 32 + 16, 128);
  }
  PERILUNE_INLINE_MEMBER void step(int64_t k) const { multiply_step(left, right, other, k); }
  PERILUNE_INLINE_MEMBER void put(float* c, int64_t) const { put_sums(c); }
};
