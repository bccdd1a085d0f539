// The gradient of a bfloat16 head, block of vocabulary rows by block. Included inside the namespace of a level, after
// the `BlockSums` that multiply there.
//
// Three products: logits again (over D), weight gradients (over tokens), hidden gradients (over rows). All operands lie
// in tile order, so that a product walks through memory in a straight line.

// 32 values of a row that has `left` of them, the rest zero.
PERILUNE_INLINE __m512i line_of(const uint16_t* row, int64_t left) {
  if (left >= 32) return _mm512_loadu_si512(row);
  return _mm512_maskz_loadu_epi16(left > 0 ? (__mmask32(1) << left) - 1 : 0, row);
}

// Two rows of 16 values as 16 pairs.
PERILUNE_INLINE __m512i pairs_of(const uint16_t* even, const uint16_t* odd, int64_t left) {
  __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
  __m512i low = _mm512_cvtepu16_epi32(even ? _mm256_maskz_loadu_epi16(mask, even) : _mm256_setzero_si256());
  __m512i high = _mm512_cvtepu16_epi32(odd ? _mm256_maskz_loadu_epi16(mask, odd) : _mm256_setzero_si256());
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

static void pair_tokens(const Head& head, int64_t strip, int64_t strips, uint16_t* token_pairs) {
  const uint16_t* hidden = static_cast<const uint16_t*>(head.hidden);
  for (int64_t d = 0; d < padded(head.width); d += 16)
    for (int pair = 0; pair < 16; ++pair) {
      int64_t token = strip * 32 + pair * 2;
      const uint16_t* even = token < head.tokens ? hidden + row_of(head, token) + d : nullptr;
      const uint16_t* odd = token + 1 < head.tokens ? hidden + row_of(head, token + 1) + d : nullptr;
      _mm512_storeu_si512(token_pairs + (d / 16 * strips + strip) * 512 + pair * 32,
                          pairs_of(even, odd, head.width - d));
    }
}

// A slice by a strip whose logits are there and whose gradients are to be formed.
struct Formation {
  const float* logits;
  int64_t slice, strip;
};

// Gradients of one row of logits for sixteen tokens, all but the target's.
PERILUNE_INLINE Words logit_gradient_of(const float* z, Floats scale, Floats lse, Floats at_zero, Floats slope) {
  Floats logprob = load(z) * scale - lse;
  logprob = logprob > all(0.0f) ? all(0.0f) : logprob;
  return nearest_half(exponential(logprob) * (at_zero - slope * logprob));
}

// The target's own entry, and zeros below the end of the vocabulary.
static __attribute__((noinline)) void mend(const BlockGradient& block, const Formation& at, int i, __m512i pairs[16],
                                           uint16_t* by_row) {
  int64_t lanes = block.strips * 32, token = at.strip * 32 + i * kTile, first = at.slice * kRows;
  int64_t rows = block.rows - first < kRows ? block.rows - first : kRows;
  uint16_t* words = reinterpret_cast<uint16_t*>(pairs);
  for (int r = int(rows); r < kRows; ++r)
    for (int t = 0; t < kTile; ++t) words[(r / 2 * 16 + t) * 2 + r % 2] = by_row[r * 32 + i * kTile + t] = 0;
  for (int t = 0; t < kTile; ++t) {
    int64_t r = block.target[token + t] - block.first_row - first;
    if (r < 0 || r >= rows) continue;
    float s[7];
    for (int j = 0; j < 7; ++j) s[j] = block.statistics[j * lanes + token + t];
    float logprob = at.logits[r * 32 + i * kTile + t] * s[0] - s[1];
    logprob = logprob > 0.0f ? 0.0f : logprob;
    // 1 - p loses its digits as p nears 1; expm1 of the forward's own log-probability keeps them.
    float shared = ::expf(logprob) * (s[6] - s[5] * (logprob + s[2]));
    uint16_t half;
    store_some(&half, all(s[0] * (shared - ::expm1f(s[3]) * s[4])), 1);
    words[(r / 2 * 16 + t) * 2 + r % 2] = by_row[r * 32 + i * kTile + t] = half;
  }
}

// The logits of one slice and strip multiplied while the gradients of the ones before are formed.
static __attribute__((noinline)) void multiply_and_form(const BlockGradient& block, const uint16_t* rows, int64_t strip,
                                                        float* c, const Formation& before) {
  int64_t steps = padded(block.width) / 32, lanes = block.strips * 32, slices = (block.rows + kRows - 1) / kRows;
  const uint16_t* right = block.hidden + strip * 2 * steps * 512;
  BlockSums sums{rows, right, right + steps * 512};
  const float* statistics = block.statistics + before.strip * 32;
  uint16_t* by_row = block.by_row + (before.slice * block.strips + before.strip) * 1024;
  uint16_t* by_token = block.by_token + (before.strip * slices + before.slice) * 1024;
  alignas(64) __m512i pairs[2][16];
  Floats scale[2], lse[2], at_zero[2], slope[2];
  for (int i = 0; i < 2; ++i) {
    scale[i] = load(statistics + i * kTile), lse[i] = load(statistics + lanes + i * kTile);
    at_zero[i] = load(statistics + 7 * lanes + i * kTile), slope[i] = load(statistics + 8 * lanes + i * kTile);
  }
  sums.clear();
  int64_t turns = steps > kRows / 2 ? steps : kRows / 2;
  for (int64_t k = 0; k < turns; k += 2)
    for (int i = 0; i < 2; ++i) {
      if (k + i < steps) sums.step(k + i);
      if (k >= kRows / 2 || !before.logits) continue;
      const float* z = before.logits + k * 2 * 32 + i * kTile;
      uint16_t* lines = by_row + k * 2 * 32 + i * kTile;
      Words half[4];
      for (int j = 0; j < 4; ++j) half[j] = logit_gradient_of(z + j * 32, scale[i], lse[i], at_zero[i], slope[i]);
      for (int j = 0; j < 4; ++j) {
        Halves narrow_ = narrow(half[j]);
        __builtin_memcpy(lines + j * 32, &narrow_, sizeof narrow_);
      }
      pairs[i][k] = (__m512i)(half[0] | half[1] << 16);
      pairs[i][k + 1] = (__m512i)(half[2] | half[3] << 16);
    }
  if (before.logits)
    for (int i = 0; i < 2; ++i) {
      int64_t first = block.first_row + before.slice * kRows;
      bool hit = block.rows - before.slice * kRows < kRows;
      const int64_t* target = block.target + before.strip * 32 + i * kTile;
      for (int t = 0; t < kTile; ++t) hit |= uint64_t(target[t] - first) < uint64_t(kRows);
      if (hit) mend(block, before, i, pairs[i], by_row);
      if (block.d_hidden) transpose(reinterpret_cast<const Words*>(pairs[i]), by_token + i * 512);
    }
  sums.put(c, steps);
}

static int64_t block_scratch_bytes(int64_t width) { return 4 * kRows * padded(width) * 2; }

// Gradients of the logits of at most four slices, and their rows of the weight as pairs.
static void form(const BlockGradient& block, int64_t first_slice, int64_t last_slice, void* scratch) {
  alignas(64) float c[2][kRows * 32];
  SumRegisters held;
  int64_t stride = padded(block.width), slices = (block.rows + kRows - 1) / kRows;
  uint16_t* ordered = static_cast<uint16_t*>(scratch);
  const uint16_t* weight = static_cast<const uint16_t*>(block.weight);
  for (int64_t slice = first_slice; slice < last_slice; ++slice) {
    uint16_t* to = ordered + (slice - first_slice) * kRows * stride;
    // Lines of a column of 32 lie in a row there; the rows they come from were asked for a slice earlier.
    const uint16_t* from = weight + slice * kRows * block.width;
    int64_t rows = block.rows - slice * kRows < kRows ? block.rows - slice * kRows : kRows;
    for (int64_t d = 0; d < stride; d += 32)
      for (int64_t r = 0; r < kRows; ++r) {
        _mm_prefetch(from + kRows * block.width + d * kRows + r * 32, _MM_HINT_T1);
        _mm512_storeu_si512(to + d * kRows + r * 32,
                            line_of(from + r * block.width + d, r < rows ? block.width - d : 0));
      }
    if (!block.d_hidden) continue;
    for (int64_t d = 0; d < stride; d += 16)
      for (int pair = 0; pair < 16; ++pair) {
        const uint16_t* even = to + d / 32 * 1024 + d % 32 + pair * 64;
        _mm512_storeu_si512(block.row_pairs + (d / 16 * slices + slice) * 512 + pair * 32,
                            pairs_of(even, even + 32, 16));
      }
  }
  Formation before{nullptr, 0, 0};
  int turn = 0;
  for (int64_t strip = 0; strip < block.strips; ++strip)
    for (int64_t slice = first_slice; slice < last_slice; ++slice, turn ^= 1) {
      multiply_and_form(block, ordered + (slice - first_slice) * kRows * stride, strip, c[turn], before);
      before = {c[turn], slice, strip};
    }
  multiply_and_form(block, ordered, 0, c[turn], before);
}

// Sums of 32 rows that are done, on their way to the weight gradient: `left` values of each exist from `to` on.
struct Finished {
  const float* c;
  uint16_t* to;
  int64_t stride, rows, left;

  PERILUNE_INLINE_MEMBER void put(int64_t first, int64_t last) const {
    for (int64_t r = first; r < last && r < rows; ++r) {
      uint16_t* row = to + r * stride;
      __m512i half = (__m512i)_mm512_cvtne2ps_pbh((__m512)load(c + r * 32 + 16), (__m512)load(c + r * 32));
      // Not past the caches: pages that are touched for the first time are in them already.
      if (left >= 32) _mm512_storeu_si512(row, half);
      else _mm512_mask_storeu_epi16(row, left >= 32 ? 0xffffffff : (__mmask32(1) << left) - 1, half);
    }
  }
};

// Weight gradients of some slices: their logit gradients by the hidden states, over all tokens. What was summed
// before is rounded and stored meanwhile.
static void weigh(const BlockGradient& block, int64_t first_slice, int64_t last_slice) {
  alignas(64) float c[2][kRows * 32];
  SumRegisters held;
  Finished before{c[0], nullptr, 0, 0, 0};
  int turn = 0;
  for (int64_t d = 0; d < block.width; d += 32)
    for (int64_t slice = first_slice; slice < last_slice; ++slice, turn ^= 1) {
      const uint16_t* left = block.by_row + slice * block.strips * 1024;
      const uint16_t* right = block.token_pairs + d / 16 * block.strips * 512;
      int64_t rows = block.rows - slice * kRows < kRows ? block.rows - slice * kRows : kRows;
      BlockSums sums{left, right, right + block.strips * 512};
      sums.clear();
      for (int64_t k = 0; k < block.strips; ++k) {
        sums.step(k);
        before.put(k * 4, k * 4 + 4);
      }
      before.put(block.strips * 4, kRows);
      sums.put(c[turn], block.strips);
      before = {c[turn], block.d_weight + slice * kRows * block.width + d, block.width, rows, block.width - d};
    }
  before.put(0, kRows);
}

// Hidden gradients of some strips and columns of 32: logit gradients by the weight, over the rows of the block. The
// sums that come next are fetched meanwhile.
static void gather(const BlockGradient& block, int64_t first_strip, int64_t last_strip, int64_t first_column,
                   int64_t last_column) {
  SumRegisters held;
  int64_t slices = (block.rows + kRows - 1) / kRows, columns = padded(block.width) / 32;
  int64_t lines = (64 + slices - 1) / slices;
  for (int64_t column = first_column; column < last_column; ++column)
    for (int64_t strip = first_strip; strip < last_strip; ++strip) {
      float* to = block.d_hidden + (strip * columns + column) * 1024;
      const float* next = strip + 1 < last_strip ? to + columns * 1024
                                                 : block.d_hidden + (first_strip * columns + column + 1) * 1024;
      const uint16_t* left = block.by_token + strip * slices * 1024;
      const uint16_t* right = block.row_pairs + column * 2 * slices * 512;
      BlockSums sums{left, right, right + slices * 512};
      sums.load(to);
      for (int64_t k = 0; k < slices; ++k) {
        for (int64_t line = k * lines; line < (k + 1) * lines; ++line) _mm_prefetch(next + line * 16, _MM_HINT_T0);
        sums.step(k);
      }
      sums.put(to, slices);
    }
}
