#include "../ops/segments.h"

#include <algorithm>

#include "level.h"
#include "share.h"

namespace perilune {
bool segment_starts(const int64_t* index, int64_t tokens, int64_t segments, int32_t* starts) {
  if (!kernels().rises(index, tokens) || (tokens && index[tokens - 1] >= segments)) return false;
  constexpr int64_t kStretch = 64;  // tokens that are walked only where a segment starts among them
  int64_t open = 0;                 // segments that have started
  for (int64_t first = 0; first < tokens; first += kStretch) {
    int64_t last = std::min(first + kStretch, tokens);
    if (index[last - 1] < open) continue;
    for (int64_t t = first; t < last; ++t)
      while (open <= index[t]) starts[open++] = int32_t(t);
  }
  std::fill(starts + open, starts + segments + 1, int32_t(tokens));
  return true;
}

void segment_sum(const Segments& segments, const void* values, bool mean, void* out, Real real, int threads) {
  const Kernels& level = kernels();
  share_segments(segments, threads, [&](int64_t first, int64_t last) {
    level.sum_segments(segments, values, mean, out, real, first, last);
  });
}

void segment_max(const Segments& segments, const void* values, void* out, int64_t* index, Real real, int threads) {
  const Kernels& level = kernels();
  share_segments(segments, threads, [&](int64_t first, int64_t last) {
    level.max_segments(segments, values, out, index, real, first, last);
  });
}

void segment_broadcast(const Segments& segments, const void* values, int64_t element_bytes, void* out, int threads) {
  const Kernels& level = kernels();
  share_segments(segments, threads, [&](int64_t first, int64_t last) {
    level.spread_segments(segments, values, element_bytes, out, first, last);
  });
}

void version_mask(const Segments& segments, const int64_t* versions, const bool* carries, int64_t oldest,
                  int64_t newest, bool* mask, int64_t* counts, int threads) {
  const Kernels& level = kernels();
  share_segments(segments, threads, [&](int64_t first, int64_t last) {
    level.mask_segments(segments, versions, carries, oldest, newest, mask, counts, first, last);
  });
}

}  // namespace perilune
