#include "../ops/token_logprob.h"

#include <algorithm>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "head.h"

namespace perilune {
namespace {

// A copy of `values` filled up to whole tiles.
template <typename T>
std::vector<T> fill_up(const T* values, int64_t count, T fill) {
  std::vector<T> all(size_t(tiles_of(count) * kTile), fill);
  std::copy(values, values + count, all.begin());
  return all;
}

void score_chunk(const Head& head, const int64_t* target, const float* scale, float* logprob, float* entropy,
                 float* lse, int threads) {
  Buffer packed = pack_tokens(head, threads);
  int64_t tiles = tiles_of(head.tokens), partitions = partitions_of(head.vocabulary);
  std::vector<float> scales = fill_up(scale, head.tokens, 1.0f);
  std::vector<int64_t> targets = fill_up(target, head.tokens, int64_t(-1));
  Buffer states(partitions * tiles * int64_t(sizeof(TileState)));
  Scan scan{packed.get(), head.weight, head.width, head.vocabulary, tiles, head.dtype, scales.data(),
            targets.data(), nullptr, nullptr, nullptr};
  scan_vocabulary(scan, states.as<TileState>(), threads);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < head.tokens; ++t) {
    const TileState* all = states.as<TileState>();
    Totals totals = merge(all, partitions, tiles, t);
    const TileState& own = all[target[t] / kPartition * tiles + t / kTile];
    logprob[t] = float(totals.logprob(own.chosen[t % kTile]));
    entropy[t] = float(totals.entropy());
    lse[t] = float(totals.lse());
  }
}

}  // namespace

void token_logprob(const Head& head, const int64_t* target, const float* scale, float* logprob, float* entropy,
                   float* lse, int threads) {
  for (int64_t first = 0; first < head.tokens; first += kChunkTokens)
    score_chunk(slice(head, first, kChunkTokens), target + first, scale + first, logprob + first, entropy + first,
                lse + first, threads);
}

void logit_gradient(const Head& head, const int64_t* target, const float* statistics, int64_t start, void* out,
                    int threads) {
  const Kernels& level = kernels();
  int64_t bytes = level.scratch_bytes(head.dtype, head.width), size = head.dtype == Dtype::bfloat16 ? 2 : 4;
  for (int64_t first = 0; first < head.tokens; first += kChunkTokens) {
    Head part = slice(head, first, kChunkTokens);
    Buffer packed = pack_tokens(part, threads);
    int64_t tiles = tiles_of(part.tokens);
    std::vector<int64_t> targets = fill_up(target + first, part.tokens, int64_t(-1));
    std::vector<float> columns(size_t(7 * tiles * kTile), 0.0f);
    for (int i = 0; i < 7; ++i)
      std::copy_n(statistics + i * head.tokens + first, part.tokens, columns.begin() + i * tiles * kTile);
    Gradient args{{packed.get(), head.weight, head.width, head.vocabulary, tiles, head.dtype, nullptr,
                   targets.data(), nullptr, nullptr, nullptr},
                  columns.data(), start, part.tokens, static_cast<char*>(out) + first * size, head.tokens};
    Buffer scratch(threads * bytes);
    int64_t blocks = (head.vocabulary + kRows - 1) / kRows;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t b = 0; b < blocks; ++b) {
#if defined(_OPENMP)
      void* mine = scratch.as<char>() + omp_get_thread_num() * bytes;
#else
      void* mine = scratch.get();
#endif
      level.gradient(args, b * kRows, std::min((b + 1) * kRows, head.vocabulary), mine);
    }
  }
}

}  // namespace perilune
