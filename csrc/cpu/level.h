// Which instructions the kernels may use, and the kernels of each level.
#pragma once
#include <cstdint>

#include "../ops/gated_silu.h"
#include "../ops/logits_logprob.h"
#include "../ops/packed_attention.h"
#include "../ops/policy_gradient.h"
#include "../ops/rms_norm.h"
#include "../ops/rotary.h"
#include "../ops/slot_attention.h"

namespace perilune {

enum class Level { plain, avx2, avx512, avx512bf16, amx };

Level best_level();                 // what processor and operating system allow
Level level();                      // what is in use: the best one unless lowered
bool set_level(Level wanted);       // false: the processor lacks it
const char* level_name(Level level);

constexpr int kTile = 16;           // tokens in a tile: one per lane
constexpr int kRows = 32;           // vocabulary rows in a block
constexpr int kPartition = 1024;    // vocabulary rows in a partition, a multiple of kRows
constexpr int kGroup = 32;          // tiles that share one pass over a partition, so that they stay in L2

// Running state of the softmax and the draw of one token tile over one partition.
struct alignas(64) TileState {
  float maximum[kTile];    // largest logit so far
  float sum[kTile];        // of exp(logit - maximum)
  float weighted[kTile];   // of exp(logit - maximum) * (logit - maximum)
  float chosen[kTile];     // logit of the target, or of the best candidate
  float threshold[kTile];  // a candidate below it can not win
  double score[kTile];     // logit + noise of the best candidate
  int64_t index[kTile];    // its vocabulary index
};

// What a scan over a partition needs, for all token tiles of a chunk; arrays are padded to whole tiles.
struct Scan {
  const void* packed;       // hidden states, packed by `pack`
  const void* weight;
  int64_t width, vocabulary, tiles;
  Dtype dtype;
  const float* scale;
  const int64_t* target;    // null when drawing
  const int64_t* key;       // null when scoring
  const int64_t* position;
  const uint8_t* greedy;
};

struct Gradient {
  Scan scan;
  const float* statistics;  // [7, tiles * kTile]
  int64_t start, tokens;    // index of the first row; columns that exist
  void* out;                // [vocabulary, tokens], rows `out_stride` apart
  int64_t out_stride;
};

constexpr int kSpanColumns = 384;   // queries times heads of a span that one task takes
constexpr int kSpanKeys = 64;       // keys in a block

// Some columns of a span: queries, and for each the heads that share a key-value head.
struct SpanPart {
  Span span;
  int64_t shared_head, first_column;
};

// Gradients of keys and values, [tokens][2][head size in whole chunks], of one shared head.
struct KeySums {
  float* data;              // null: not wanted
  int64_t first_token, last_token;
};

constexpr int kStatistics = 9;  // see statistics.h

// One block of vocabulary rows on its way through the gradient of a head. Tiles are 1 KB, 16 rows of 64 bytes; tokens
// come in strips of 32, vocabulary rows in slices of 32, the width in columns of 16, all filled up with zeros.
struct BlockGradient {
  const void* weight;           // row `first_row` of the block is where it starts
  int64_t width, first_row, rows, strips;
  const float* statistics;      // [kStatistics, strips * 32], those of statistics.h
  const int64_t* target;        // [strips * 32], in the whole vocabulary
  const uint16_t* hidden;       // tiles of `pack`: pairs of D by tokens
  const uint16_t* token_pairs;  // [columns][strips] tiles: pairs of tokens by D
  uint16_t* by_row;             // [slices][strips] pairs of tiles: rows by tokens
  uint16_t* by_token;           // [strips][slices] pairs of tiles: tokens by rows
  uint16_t* row_pairs;          // [columns][slices] tiles: pairs of rows by D
  float* d_hidden;              // [strips][columns / 2] blocks of 32 tokens by 32 of D; null: not wanted
  uint16_t* d_weight;           // rows of the block; null: not wanted
};

struct Kernels {
  int64_t (*packed_bytes)(Dtype, int64_t width);   // of one tile
  int64_t (*scratch_bytes)(Dtype, int64_t width);  // of one thread
  void (*pack)(const Head&, int64_t first_token, void* tile);
  void (*scan)(const Scan&, int64_t first_row, int64_t last_row, int64_t first_tile, int64_t last_tile,
               TileState* states, void* scratch);
  void (*gradient)(const Gradient&, int64_t first_row, int64_t last_row, void* scratch);
  void (*attend)(const SlotAttention&, int64_t token, int64_t shared_head);
  void (*norm)(const RmsNorm&, int64_t first_row, int64_t last_row);
  void (*rotate)(const Rotary&, int64_t first_token, int64_t last_token);
  void (*gate)(const GatedSilu&, int64_t first_row, int64_t last_row);
  bool (*rises)(const int64_t* index, int64_t tokens);  // from 0, and never falls
  void (*sum_segments)(const Segments&, const void* values, bool mean, void* out, Real, int64_t first, int64_t last);
  void (*max_segments)(const Segments&, const void* values, void* out, int64_t* index, Real, int64_t first,
                       int64_t last);
  void (*spread_segments)(const Segments&, const void* values, int64_t element_bytes, void* out, int64_t first,
                          int64_t last);
  void (*mask_segments)(const Segments&, const int64_t* versions, const bool* carries, int64_t oldest, int64_t newest,
                        bool* mask, int64_t* counts, int64_t first, int64_t last);
  void (*loss)(const PolicyGradient&, double* losses, void* drift, int64_t first, int64_t last);
  void (*loss_gradient)(const PolicyGradient&, const void* drift, const void* g_loss, void* gradient, int64_t first,
                        int64_t last);
  int64_t (*span_bytes)(Dtype, int64_t head_size);       // scratch of one thread, forward or backward
  int64_t (*sums_bytes)(int64_t head_size);              // of one token
  void (*span)(const PackedAttention&, const SpanPart&, void* out, float* lse, void* scratch);
  void (*span_gradient)(const PackedGradient&, const SpanPart&, bool want_query, const KeySums&, void* scratch);
  void (*write_sums)(const PackedGradient&, int64_t shared_head, const KeySums&);
  // Of bfloat16 heads, null where the level has none: slices first..last of a block; strips and columns of it.
  int64_t (*block_scratch_bytes)(int64_t width);
  void (*pair_tokens)(const Head&, int64_t first_token, int64_t strips, uint16_t* token_pairs);
  void (*form)(const BlockGradient&, int64_t first_slice, int64_t last_slice, void* scratch);
  void (*weigh)(const BlockGradient&, int64_t first_slice, int64_t last_slice);
  void (*gather)(const BlockGradient&, int64_t first_strip, int64_t last_strip, int64_t first_column,
                 int64_t last_column);
  // Columns first..last of one row of logits; sums: maximum, sum, weighted sum.
  void (*sum_columns)(const Logits&, int64_t token, float scale, int64_t first, int64_t last, double* sums);
  void (*spread_gradient)(const Logits&, int64_t token, const float* statistics, int64_t target, int64_t first,
                          int64_t last, void* out);
  int64_t (*saturate)(int64_t rounds);  // products of registers; the operations done
};

extern const Kernels plain_kernels, avx2_kernels, avx512_kernels, avx512bf16_kernels, amx_kernels;
const Kernels& kernels();           // of the level in use

}  // namespace perilune
