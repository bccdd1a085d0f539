// Rows shared out over threads, or kept by the caller where that is quicker.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../ops/packed_rows.h"

namespace perilune {

constexpr int64_t kThreadElements = 1 << 18;  // below it, waking a thread costs more than its share of the work

// Calls body(first_row, last_row) until all rows are done. All threads or none: libgomp ends the threads of its
// pool that a smaller region leaves out.
template <typename Body>
void share_rows(int64_t rows, int64_t elements_of_a_row, int threads, const Body& body) {
  if (threads < 2 || rows * elements_of_a_row < 2 * kThreadElements) return body(int64_t(0), rows);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int part = 0; part < threads; ++part) body(rows * part / threads, rows * (part + 1) / threads);
}

// Calls body(first_segment, last_segment): whole segments, about as many tokens to each thread.
template <typename Body>
void share_segments(const Segments& segments, int threads, const Body& body) {
  const int32_t *begin = segments.starts, *end = begin + segments.count;
  int64_t tokens = segments.tokens();
  auto boundary = [&](int64_t token) -> int64_t {
    return token == tokens ? segments.count : std::lower_bound(begin, end, token) - begin;
  };
  share_rows(tokens, 1, threads, [&](int64_t first, int64_t last) {
    body(first ? boundary(first) : 0, boundary(last));
  });
}

}  // namespace perilune
