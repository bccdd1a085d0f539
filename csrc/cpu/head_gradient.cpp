#include "../ops/head_gradient.h"

#include <algorithm>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "head.h"
#include "statistics.h"

namespace perilune {
namespace {

constexpr int64_t kStrip = 32;        // tokens
constexpr int64_t kTaskSlices = 4;    // slices formed or weighed by one thread at a time
constexpr int64_t kTaskStrips = 4;    // strips gathered likewise
constexpr int64_t kTaskColumns = 14;  // columns of 32 of D
constexpr int64_t kBlockBytes = 1 << 20;

int64_t up(int64_t value, int64_t step) { return (value + step - 1) / step; }

// Rows of a block: its logit gradients stay in the second cache, and there is work for all threads.
int64_t block_rows(int64_t strips, int threads) {
  int64_t rows = kBlockBytes / (strips * kStrip * 2) / (kTaskSlices * kRows) * (kTaskSlices * kRows);
  return std::clamp<int64_t>(rows, kTaskSlices * kRows * std::min(threads, 4), 1024);
}

// The storage of a block that is formed while the one before it is used.
struct Room {
  Room(int64_t rows, int64_t strips, int64_t width, bool want_hidden)
      : by_row(rows * strips * kStrip * 2), by_token(want_hidden ? rows * strips * kStrip * 2 : 0),
        row_pairs(want_hidden ? rows * width * 2 : 0) {}
  Buffer by_row, by_token, row_pairs;
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
  int64_t strips = up(head.tokens, kStrip), lanes = strips * kStrip, width = up(head.width, 32) * 32;
  int64_t rows = block_rows(strips, threads), columns = width / 32;
  std::vector<float> values = columns_of(statistics, head.tokens, lanes);
  std::vector<int64_t> targets(size_t(lanes), -1);
  std::copy_n(target, head.tokens, targets.begin());
  Buffer hidden(lanes * width * 2), token_pairs(lanes * width * 2), sums(d_hidden ? lanes * width * 4 : 0);
  Room rooms[2] = {{rows, strips, width, d_hidden != nullptr}, {rows, strips, width, d_hidden != nullptr}};
  int64_t scratch_bytes = level.block_scratch_bytes(head.width);
  Buffer scratch(threads * scratch_bytes);
  int64_t blocks = up(head.vocabulary, rows);
  auto block_at = [&](int64_t index) {
    int64_t first = index * rows;
    Room& room = rooms[index % 2];
    const char* weight = static_cast<const char*>(head.weight) + first * head.width * 2;
    auto* to = d_weight ? static_cast<uint16_t*>(d_weight) + first * head.width : nullptr;
    return BlockGradient{weight, head.width, first, std::min(rows, head.vocabulary - first), strips, values.data(),
                         targets.data(), hidden.as<uint16_t>(), token_pairs.as<uint16_t>(),
                         room.by_row.as<uint16_t>(), room.by_token.as<uint16_t>(), room.row_pairs.as<uint16_t>(),
                         d_hidden ? sums.as<float>() : nullptr, to};
  };
  int64_t forms = up(up(rows, kRows), kTaskSlices), gathers_strips = up(strips, kTaskStrips);
  int64_t gathers = d_hidden ? gathers_strips * up(columns, kTaskColumns) : 0, weighs = d_weight ? forms : 0;
#pragma omp parallel num_threads(threads)
  {
#if defined(_OPENMP)
    void* mine = scratch.as<char>() + omp_get_thread_num() * scratch_bytes;
#else
    void* mine = scratch.get();
#endif
#pragma omp for schedule(static)
    for (int64_t strip = 0; strip < strips; ++strip) {
      int64_t bytes = level.packed_bytes(head.dtype, head.width);
      for (int i = 0; i < 2; ++i)
        level.pack(head, strip * kStrip + i * kTile, hidden.as<char>() + (strip * 2 + i) * bytes);
      level.pair_tokens(head, strip, strips, token_pairs.as<uint16_t>());
      if (d_hidden) std::fill_n(sums.as<float>() + strip * kStrip * width, kStrip * width, 0.0f);
    }
    // Products with one block and the forming of the next share a turn, so that a block costs one barrier.
    for (int64_t index = 0; index <= blocks; ++index) {
      BlockGradient next = block_at(std::min(index, blocks - 1)), now = block_at(std::max<int64_t>(index - 1, 0));
      int64_t used = index > 0 ? gathers + weighs : 0, formed = index < blocks ? forms : 0;
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < used + formed; ++task) {
        const BlockGradient& block = task < used ? now : next;
        int64_t slices = up(block.rows, kRows);
        if (task < used && task < gathers) {
          int64_t strip = task % gathers_strips * kTaskStrips, column = task / gathers_strips * kTaskColumns;
          level.gather(block, strip, std::min(strip + kTaskStrips, strips), column,
                       std::min(column + kTaskColumns, columns));
          continue;
        }
        int64_t first = (task < used ? task - gathers : task - used) * kTaskSlices;
        int64_t last = std::min(first + kTaskSlices, slices);
        if (first >= last) continue;
        if (task < used) level.weigh(block, first, last);
        else level.form(block, first, last, mine);
      }
    }
    if (d_hidden) {
#pragma omp for schedule(static)
      for (int64_t t = 0; t < head.tokens; ++t)
        for (int64_t column = 0; column < columns; ++column)
          std::copy_n(sums.as<float>() + (t / kStrip * columns + column) * 1024 + t % kStrip * 32,
                      std::min<int64_t>(32, head.width - column * 32), d_hidden + t * head.width + column * 32);
    }
  }
  return true;
}

}  // namespace perilune
