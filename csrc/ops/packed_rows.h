// Between a packed row and a padded one: tokens starts[s] .. starts[s + 1] - 1 of the packed row are the first of
// row s of [S, L, ...]. Every byte of the results is written, each once.
#pragma once
#include <cstdint>

namespace perilune {

struct Segments {
  const int32_t* starts;  // [S + 1], cu_seqlens: from 0, never falling (checked by the caller)
  int64_t count;          // S
  int64_t tokens() const { return starts[count]; }
};

struct PackedRows {
  Segments segments;
  int64_t length;         // L, at least the tokens of every segment (checked by the caller)
  int64_t token_bytes;
};

// positions [T] restart with every segment, segment [T] is the one that a token belongs to.
void row_layout(const Segments& segments, int64_t* positions, int64_t* segment, int threads);

// fill: the bytes of one element, of which a token holds token_bytes / fill_bytes; fill_bytes is 1, 2, 4 or 8.
void pad(const PackedRows& rows, const void* packed, const void* fill, int64_t fill_bytes, void* padded,
         int threads);

void unpad(const PackedRows& rows, const void* padded, void* packed, int threads);

}  // namespace perilune
