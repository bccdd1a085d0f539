#include "head.h"

#include <algorithm>
#include <cmath>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace perilune {

Buffer pack_tokens(const Head& head, int threads) {
  const Kernels& level = kernels();
  int64_t tiles = tiles_of(head.tokens), bytes = level.packed_bytes(head.dtype, head.width);
  Buffer packed(tiles * bytes);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t tile = 0; tile < tiles; ++tile) level.pack(head, tile * kTile, packed.as<char>() + tile * bytes);
  return packed;
}

void scan_vocabulary(const Scan& scan, TileState* states, int threads) {
  const Kernels& level = kernels();
  int64_t partitions = partitions_of(scan.vocabulary), bytes = level.scratch_bytes(scan.dtype, scan.width);
  Buffer scratch(threads * bytes);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t p = 0; p < partitions; ++p) {
#if defined(_OPENMP)
    void* mine = scratch.as<char>() + omp_get_thread_num() * bytes;
#else
    void* mine = scratch.get();
#endif
    int64_t first = p * kPartition, last = std::min<int64_t>(first + kPartition, scan.vocabulary);
    for (int64_t tile = 0; tile < scan.tiles; tile += kGroup)
      level.scan(scan, first, last, tile, std::min<int64_t>(tile + kGroup, scan.tiles), states + p * scan.tiles,
                 mine);
  }
}

Totals merge(const TileState* states, int64_t partitions, int64_t tiles, int64_t token) {
  int64_t tile = token / kTile, lane = token % kTile;
  Totals totals{-1e30, 0.0, 0.0};
  for (int64_t p = 0; p < partitions; ++p)
    totals.maximum = std::max<double>(totals.maximum, states[p * tiles + tile].maximum[lane]);
  for (int64_t p = 0; p < partitions; ++p) {
    const TileState& part = states[p * tiles + tile];
    double shift = part.maximum[lane] - totals.maximum, keep = std::exp(shift);
    totals.sum += part.sum[lane] * keep;
    totals.weighted += (part.weighted[lane] + part.sum[lane] * shift) * keep;
  }
  return totals;
}

double Totals::logprob(float logit) const { return (logit - maximum) - std::log(sum); }
double Totals::entropy() const { return std::log(sum) - weighted / sum; }
double Totals::lse() const { return maximum + std::log(sum); }

Head slice(const Head& head, int64_t first_token, int64_t tokens) {
  Head part = head;
  int64_t size = head.dtype == Dtype::bfloat16 ? 2 : 4;
  if (head.rows) part.rows = head.rows + first_token;
  else part.hidden = static_cast<const char*>(head.hidden) + first_token * head.hidden_stride * size;
  part.tokens = std::min(tokens, head.tokens - first_token);
  return part;
}

}  // namespace perilune
