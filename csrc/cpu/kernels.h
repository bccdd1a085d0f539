// All kernels of one level. A level's source file sets the instruction target and five macros, then includes this:
//   PERILUNE_LEVEL  name of the level       PERILUNE_WIDE   AVX-512 is there    PERILUNE_TILES  AMX is there
//   PERILUNE_LANES  floats in a register    PERILUNE_DOTS   AVX512_BF16 is there, as wherever AMX is
// Only C headers are in scope here: an inline function of the C++ library compiled under a wide target could
// be the copy that the linker keeps for everyone.

#define PERILUNE_JOIN_(a, b) a##b
#define PERILUNE_JOIN(a, b) PERILUNE_JOIN_(a, b)

namespace perilune {
namespace PERILUNE_JOIN(level_, PERILUNE_LEVEL) {

#include "lanes.h"
#include "product.h"
#include "scan.h"
#include "tokens.h"
#include "matrix.h"
#include "span.h"
#include "span_gradient.h"

#if PERILUNE_TILES
#include "tiles.h"
#include "blocks.h"
typedef TileProduct HalfProduct;
typedef TileMatrix HalfMatrix;
#elif PERILUNE_DOTS
#include "dots.h"
#include "blocks.h"
typedef DotProduct HalfProduct;
typedef DotMatrix HalfMatrix;
#else
typedef FloatProduct HalfProduct;
typedef FloatMatrix HalfMatrix;
#endif
#include "attend.h"
#include "rows.h"
#include "logits.h"

static int64_t packed_bytes(Dtype dtype, int64_t width) {
  return dtype == Dtype::bfloat16 ? HalfProduct::packed_bytes(width) : FloatProduct::packed_bytes(width);
}

static int64_t scratch_bytes(Dtype dtype, int64_t width) {
  return dtype == Dtype::bfloat16 ? HalfProduct::scratch_bytes(width) : FloatProduct::scratch_bytes(width);
}

static void pack(const Head& head, int64_t first_token, void* tile) {
  if (head.dtype == Dtype::bfloat16) HalfProduct::pack<uint16_t>(head, first_token, tile);
  else FloatProduct::pack<float>(head, first_token, tile);
}

static void scan(const Scan& args, int64_t first_row, int64_t last_row, int64_t first_tile, int64_t last_tile,
                 TileState* states, void* scratch) {
#if PERILUNE_TILES
  auto run = args.dtype == Dtype::bfloat16 ? scan_tiles : scan_rows<FloatProduct, float>;
#else
  auto run = args.dtype == Dtype::bfloat16 ? scan_rows<HalfProduct, uint16_t> : scan_rows<FloatProduct, float>;
#endif
  run(args, first_row, last_row, first_tile, last_tile, states, scratch);
}

static void gradient(const Gradient& args, int64_t first_row, int64_t last_row, void* scratch) {
  bool half = args.scan.dtype == Dtype::bfloat16;
  auto run = half ? gradient_rows<HalfProduct, uint16_t> : gradient_rows<FloatProduct, float>;
  run(args, first_row, last_row, scratch);
}

static void attend(const SlotAttention& args, int64_t token, int64_t shared_head) {
  auto run = args.dtype == Dtype::bfloat16 ? attend_any<uint16_t> : attend_any<float>;
  run(args, token, shared_head);
}

static void norm(const RmsNorm& args, int64_t first_row, int64_t last_row) {
  (args.dtype == Dtype::bfloat16 ? norm_rows<uint16_t> : norm_rows<float>)(args, first_row, last_row);
}

static void rotate(const Rotary& args, int64_t first_token, int64_t last_token) {
  (args.dtype == Dtype::bfloat16 ? rotate_rows<uint16_t> : rotate_rows<float>)(args, first_token, last_token);
}

static void gate(const GatedSilu& args, int64_t first_row, int64_t last_row) {
  (args.dtype == Dtype::bfloat16 ? gate_rows<uint16_t> : gate_rows<float>)(args, first_row, last_row);
}

static void sum(const Segments& segments, const void* values, bool mean, void* out, Real real, int64_t first,
                int64_t last) {
  auto run = real == Real::float32 ? sum_segments<float> : sum_segments<double>;
  run(segments, values, mean, out, first, last);
}

static void largest(const Segments& segments, const void* values, void* out, int64_t* index, Real real, int64_t first,
                    int64_t last) {
  auto run = real == Real::float32 ? max_segments<float> : max_segments<double>;
  run(segments, values, out, index, first, last);
}

static void spread_segments(const Segments& segments, const void* values, int64_t element_bytes, void* out,
                            int64_t first, int64_t last) {
  auto run = element_bytes == 1   ? spread_words<uint8_t>
             : element_bytes == 2 ? spread_words<uint16_t>
             : element_bytes == 4 ? spread_words<uint32_t>
                                  : spread_words<uint64_t>;
  run(segments, values, out, first, last);
}

static void loss(const PolicyGradient& args, double* losses, void* drift, int64_t first, int64_t last) {
  auto run = args.real == Real::float32 ? loss_segments<float> : loss_segments<double>;
  run(args, losses, drift, first, last);
}

static void loss_gradient(const PolicyGradient& args, const void* drift, const void* g_loss, void* gradient,
                          int64_t first, int64_t last) {
  auto run = args.real == Real::float32 ? gradient_segments<float> : gradient_segments<double>;
  run(args, drift, g_loss, gradient, first, last);
}

static int64_t span_bytes(Dtype dtype, int64_t head_size) {
  int64_t width = whole_chunks(head_size);
  Pieces forward{nullptr}, backward{nullptr};
  if (dtype == Dtype::bfloat16) {
    ForwardScratch<HalfMatrix>(forward, width);
    BackwardScratch<HalfMatrix>(backward, width);
  } else {
    ForwardScratch<FloatMatrix>(forward, width);
    BackwardScratch<FloatMatrix>(backward, width);
  }
  return forward.used > backward.used ? forward.used : backward.used;
}

static int64_t sums_bytes(int64_t head_size) { return 2 * whole_chunks(head_size) * int64_t(sizeof(float)); }

static void span(const PackedAttention& args, const SpanPart& part, void* out, float* lse, void* scratch) {
#if PERILUNE_TILES
  TileRegisters held;
#endif
  if (args.dtype == Dtype::bfloat16) span_forward<HalfMatrix>(args, part, static_cast<uint16_t*>(out), lse, scratch);
  else span_forward<FloatMatrix>(args, part, static_cast<float*>(out), lse, scratch);
}

static void span_gradient(const PackedGradient& args, const SpanPart& part, bool want_query, const KeySums& sums,
                          void* scratch) {
#if PERILUNE_TILES
  TileRegisters held;
#endif
  bool half = args.forward.dtype == Dtype::bfloat16;
  auto run = half ? span_backward<HalfMatrix, uint16_t> : span_backward<FloatMatrix, float>;
  run(args, part, want_query, sums, scratch);
}

static void write_sums(const PackedGradient& args, int64_t shared_head, const KeySums& sums) {
  bool half = args.forward.dtype == Dtype::bfloat16;
  (half ? write_sums<HalfMatrix, uint16_t> : write_sums<FloatMatrix, float>)(args, shared_head, sums);
}

static void sum_columns_of(const Logits& args, int64_t token, float scale, int64_t first, int64_t last, double* sums) {
  auto run = args.dtype == Dtype::bfloat16 ? sum_columns<uint16_t> : sum_columns<float>;
  run(args, token, scale, first, last, sums);
}

static void spread_gradient_of(const Logits& args, int64_t token, const float* statistics, int64_t target,
                               int64_t first, int64_t last, void* out) {
  auto run = args.dtype == Dtype::bfloat16 ? spread_gradient<uint16_t> : spread_gradient<float>;
  run(args, token, statistics, target, first, last, out);
}

// Chains that do not wait for each other; the asm keeps them from being worked out beforehand.
static int64_t saturate(int64_t rounds) {
#if PERILUNE_TILES
  TileProduct tiles(32, nullptr);
  alignas(64) uint16_t zeros[512] = {};
  clear_sums();
  for (int64_t round = 0; round < rounds; ++round) {
    if (round == 0) {
      _tile_loadd(4, zeros, 64);
      _tile_loadd(5, zeros, 64);
      _tile_loadd(6, zeros, 64);
      _tile_loadd(7, zeros, 64);
    }
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return rounds * 4 * 16 * 16 * 32 * 2;
#elif PERILUNE_DOTS
  constexpr int kChains = 10;
  __m512 sum[kChains];
  __m512bh factor = (__m512bh)_mm512_set1_epi32(0x3f7f3f7f);
  for (int i = 0; i < kChains; ++i) sum[i] = (__m512)all(float(i));
  for (int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < kChains; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], factor, factor);
  float seen = 0.0f;
  for (int i = 0; i < kChains; ++i) seen += total((Floats)sum[i]);
  asm volatile("" : : "r"(&seen) : "memory");
  return rounds * kChains * 16 * 2 * 2;
#else
  constexpr int kChains = PERILUNE_WIDE ? 10 : 4;
  Floats sum[kChains], factor = all(0.999f);
  for (int i = 0; i < kChains; ++i) sum[i] = all(float(i));
  for (int64_t round = 0; round < rounds; ++round)
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * factor + factor;
  float seen = 0.0f;
  for (int i = 0; i < kChains; ++i) seen += total(sum[i]);
  asm volatile("" : : "r"(&seen) : "memory");
  return rounds * kChains * 16 * 2;
#endif
}

}  // namespace PERILUNE_JOIN(level_, PERILUNE_LEVEL)

using namespace PERILUNE_JOIN(level_, PERILUNE_LEVEL);
extern const Kernels PERILUNE_JOIN(PERILUNE_LEVEL, _kernels) = {
    packed_bytes, scratch_bytes, pack, scan, gradient, attend, norm, rotate, gate,
    rises_from_zero, sum, largest, spread_segments, mask_segments, loss, loss_gradient,
    span_bytes, sums_bytes, span, span_gradient, write_sums,
#if PERILUNE_DOTS
    block_scratch_bytes, pair_tokens, form, weigh, gather,
#else
    nullptr, nullptr, nullptr, nullptr, nullptr,
#endif
    sum_columns_of, spread_gradient_of, saturate,
};

}  // namespace perilune
