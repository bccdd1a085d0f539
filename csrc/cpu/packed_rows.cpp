#include "../ops/packed_rows.h"

#include <algorithm>
#include <cstring>

#include "pages.h"
#include "share.h"

namespace perilune {
namespace {

// The segment of a token: the last that starts at or before it.
int64_t segment_of(const Segments& segments, int64_t token) {
  const int32_t* end = segments.starts + segments.count + 1;
  return std::upper_bound(segments.starts, end, token) - segments.starts - 1;
}

template <typename Word>
void repeat(char* target, const void* fill, int64_t bytes) {
  Word word;
  std::memcpy(&word, fill, sizeof(Word));
  std::fill_n(reinterpret_cast<Word*>(target), bytes / sizeof(Word), word);
}

void repeat_any(char* target, const void* fill, int64_t fill_bytes, int64_t bytes) {
  if (fill_bytes == 1) repeat<uint8_t>(target, fill, bytes);
  else if (fill_bytes == 2) repeat<uint16_t>(target, fill, bytes);
  else if (fill_bytes == 4) repeat<uint32_t>(target, fill, bytes);
  else repeat<uint64_t>(target, fill, bytes);
}

}  // namespace

void row_layout(const Segments& segments, int64_t* positions, int64_t* segment, int threads) {
  share_rows(segments.tokens(), 2, threads, [&](int64_t first, int64_t last) {
    for (int64_t s = segment_of(segments, first); first < last; ++s) {
      int64_t start = segments.starts[s], end = std::min<int64_t>(last, segments.starts[s + 1]);
      for (int64_t t = first; t < end; ++t) positions[t] = t - start;
      std::fill(segment + first, segment + std::max(first, end), s);
      first = std::max(first, end);
    }
  });
}

void pad(const PackedRows& rows, const void* packed, const void* fill, int64_t fill_bytes, void* padded,
         int threads) {
  const char* source = static_cast<const char*>(packed);
  char* target = static_cast<char*>(padded);
  int64_t bytes = rows.token_bytes, length = rows.length;
  prefer_large_pages(padded, rows.segments.count * length * bytes);
  // A row of the result is one of its S * L tokens; threads meet anywhere.
  share_rows(rows.segments.count * length, (bytes + 1) / 2, threads, [&](int64_t first, int64_t last) {
    for (int64_t s = first / std::max<int64_t>(length, 1); first < last; ++s) {
      int64_t start = rows.segments.starts[s], held = rows.segments.starts[s + 1] - start;
      int64_t stop = std::min(last, (s + 1) * length);
      int64_t split = std::clamp(s * length + held, first, stop);
      if (split > first)
        std::memcpy(target + first * bytes, source + (start + first - s * length) * bytes, (split - first) * bytes);
      repeat_any(target + split * bytes, fill, fill_bytes, (stop - split) * bytes);
      first = stop;
    }
  });
}

void unpad(const PackedRows& rows, const void* padded, void* packed, int threads) {
  const char* source = static_cast<const char*>(padded);
  char* target = static_cast<char*>(packed);
  int64_t bytes = rows.token_bytes;
  prefer_large_pages(packed, rows.segments.tokens() * bytes);
  share_rows(rows.segments.tokens(), (bytes + 1) / 2, threads, [&](int64_t first, int64_t last) {
    for (int64_t s = segment_of(rows.segments, first); first < last; ++s) {
      int64_t start = rows.segments.starts[s], end = std::min<int64_t>(last, rows.segments.starts[s + 1]);
      if (end <= first) continue;
      std::memcpy(target + first * bytes, source + (s * rows.length + first - start) * bytes, (end - first) * bytes);
      first = end;
    }
  });
}

}  // namespace perilune
