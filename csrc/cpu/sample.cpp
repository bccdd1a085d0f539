#include "../ops/sample.h"

#include <vector>

#include "head.h"

namespace perilune {
namespace {

void draw_chunk(const Head& head, const float* temperature, const int64_t* key, const int64_t* position,
                int64_t* token, float* logprob, int threads) {
  Buffer packed = pack_tokens(head, threads);
  int64_t tiles = tiles_of(head.tokens), partitions = partitions_of(head.vocabulary);
  size_t lanes = size_t(tiles * kTile);
  std::vector<float> scale(lanes, 1.0f);
  std::vector<int64_t> keys(lanes, 0), positions(lanes, 0);
  std::vector<uint8_t> greedy(lanes, 1);
  for (int64_t t = 0; t < head.tokens; ++t) {
    greedy[t] = temperature[t] == 0.0f;
    scale[t] = greedy[t] ? 1.0f : 1.0f / temperature[t];
    keys[t] = key[t];
    positions[t] = position[t];
  }
  Buffer states(partitions * tiles * int64_t(sizeof(TileState)));
  Scan scan{packed.get(), head.weight, head.width, head.vocabulary, tiles, head.dtype, scale.data(), nullptr,
            keys.data(), positions.data(), greedy.data()};
  scan_vocabulary(scan, states.as<TileState>(), threads);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < head.tokens; ++t) {
    const TileState* best = states.as<TileState>() + t / kTile;
    for (int64_t p = 1; p < partitions; ++p) {
      const TileState* other = states.as<TileState>() + p * tiles + t / kTile;
      if (other->score[t % kTile] > best->score[t % kTile]) best = other;
    }
    token[t] = best->index[t % kTile];
    Totals totals = merge(states.as<TileState>(), partitions, tiles, t);
    logprob[t] = float(totals.logprob(best->chosen[t % kTile]));
  }
}

}  // namespace

void sample(const Head& head, const float* temperature, const int64_t* key, const int64_t* position, int64_t* token,
            float* logprob, int threads) {
  for (int64_t first = 0; first < head.tokens; first += kChunkTokens)
    draw_chunk(slice(head, first, kChunkTokens), temperature + first, key + first, position + first, token + first,
               logprob + first, threads);
}

}  // namespace perilune
