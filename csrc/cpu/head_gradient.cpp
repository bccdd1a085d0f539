#include "../ops/head_gradient.h"

#include <algorithm>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "head.h"
#include "pages.h"
#include "statistics.h"

namespace perilune {
namespace {

constexpr int64_t kStrip = 32;        // tokens
constexpr int64_t kTaskSlices = 4;    // slices formed at a time
constexpr int64_t kParts = 8;         // of the vocabulary, each walked by one thread
constexpr int64_t kBlockBytes = 1 << 18;

int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step; }

// Rows of a block: 256 KiB of logit gradients by row, and as many by token, which the second cache holds. A task forms
// 128 rows at least, so from 1024 tokens on they grow with the tokens and reach into the third.
int64_t block_rows(int64_t strips) {
  constexpr int64_t kLeast = kTaskSlices * kRows;
  return std::clamp<int64_t>(kBlockBytes / (strips * kStrip * 2) / kLeast * kLeast, kLeast, 4 * kLeast);
}

// What one thread keeps of its block.
struct Room {
  Room(int64_t rows, int64_t strips, int64_t width, bool want_hidden, int64_t scratch_bytes)
      : by_row(rows * strips * kStrip * 2), by_token(want_hidden ? rows * strips * kStrip * 2 : 0),
        row_pairs(want_hidden ? rows * width * 2 : 0), scratch(scratch_bytes) {}
  Buffer by_row, by_token, row_pairs, scratch;
};

}  // namespace

bool head_gradient(const Head& head, const int64_t* target, const float* statistics, float* d_hidden, void* d_weight,
                   int threads) {
  const Kernels& level = kernels();
  if (head.dtype != Dtype::bfloat16 || !level.form) return false;
  if (head.tokens == 0) {
    if (d_weight) std::fill_n(static_cast<uint16_t*>(d_weight), head.vocabulary * head.width, uint16_t(0));
    return true;
  }
  if (d_weight) prefer_large_pages(d_weight, head.vocabulary * head.width * 2);
  int64_t strips = up(head.tokens, kStrip), lanes = strips * kStrip, width = up(head.width, 32) * 32;
  int64_t columns = width / 32, rows = block_rows(strips), part_rows = up(up(head.vocabulary, kParts), kRows) * kRows;
  std::vector<float> values = columns_of(statistics, head.tokens, lanes);
  std::vector<int64_t> targets(size_t(lanes), -1);
  std::copy_n(target, head.tokens, targets.begin());
  Buffer hidden(lanes * width * 2), token_pairs(lanes * width * 2);
  int64_t parts = up(head.vocabulary, part_rows), sums_size = d_hidden ? lanes * width : 0;
  Buffer sums(parts * sums_size * 4);
  // Before the threads part: out of memory is an error here, and the end of the process there.
  std::vector<Room> rooms;
  rooms.reserve(size_t(threads));
  for (int i = 0; i < threads; ++i)
    rooms.emplace_back(rows, strips, width, d_hidden != nullptr, level.block_scratch_bytes(head.width));
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t strip = 0; strip < strips; ++strip) {
      int64_t bytes = level.packed_bytes(head.dtype, head.width);
      for (int i = 0; i < 2; ++i)
        level.pack(head, strip * kStrip + i * kTile, hidden.as<char>() + (strip * 2 + i) * bytes);
      level.pair_tokens(head, strip, strips, token_pairs.as<uint16_t>());
    }
#if defined(_OPENMP)
    const Room& room = rooms[omp_get_thread_num()];
#else
    const Room& room = rooms[0];
#endif
    // No thread waits for another before the end: a neighbour that takes a core away costs no more than its time.
#pragma omp for schedule(dynamic, 1)
    for (int64_t part = 0; part < parts; ++part) {
      float* own = sums.as<float>() + part * sums_size;
      std::fill_n(own, sums_size, 0.0f);
      int64_t end = std::min((part + 1) * part_rows, head.vocabulary);
      for (int64_t first = part * part_rows; first < end; first += rows) {
        BlockGradient block{static_cast<const uint16_t*>(head.weight) + first * head.width, head.width, first,
                            std::min(rows, end - first), strips, values.data(), targets.data(),
                            hidden.as<uint16_t>(), token_pairs.as<uint16_t>(), room.by_row.as<uint16_t>(),
                            room.by_token.as<uint16_t>(), room.row_pairs.as<uint16_t>(), d_hidden ? own : nullptr,
                            d_weight ? static_cast<uint16_t*>(d_weight) + first * head.width : nullptr};
        int64_t slices = up(block.rows, kRows);
        for (int64_t slice = 0; slice < slices; slice += kTaskSlices)
          level.form(block, slice, std::min(slice + kTaskSlices, slices), room.scratch.get());
        if (d_weight) level.weigh(block, 0, slices);
        if (d_hidden) level.gather(block, 0, strips, 0, columns);
      }
    }
    if (d_hidden) {
#pragma omp for schedule(static)
      for (int64_t t = 0; t < head.tokens; ++t)
        for (int64_t d = 0; d < head.width; ++d) {
          const float* at = sums.as<float>() + (t / kStrip * columns + d / 32) * 1024 + t % kStrip * 32 + d % 32;
          float total = at[0];
          for (int64_t part = 1; part < parts; ++part) total += at[part * sums_size];
          d_hidden[t * head.width + d] = total;
        }
    }
  }
  return true;
}

}  // namespace perilune
