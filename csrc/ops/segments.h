// Values of a packed row, segment by segment. Sums are kept in fp64, in lanes that start with the segment, and merged
// in one order: they depend neither on the place of the segment, nor on its neighbours or the threads.
#pragma once
#include "packed_rows.h"

namespace perilune {

enum class Real { float32, float64 };

// starts [S + 1] of a never falling index [T] in 0..S-1; false: it falls, or leaves the range.
bool segment_starts(const int64_t* index, int64_t tokens, int64_t segments, int32_t* starts);

// values [T], out [S]. mean: divided by the tokens of the segment, of which there is at least one.
void segment_sum(const Segments& segments, const void* values, bool mean, void* out, Real real, int threads);

// values [T], out [S], index [S] of the first token that holds the maximum; NaN is larger than all. At least one
// token in every segment.
void segment_max(const Segments& segments, const void* values, void* out, int64_t* index, Real real, int threads);

// values [S], out [T], elements of 1, 2, 4 or 8 bytes.
void segment_broadcast(const Segments& segments, const void* values, int64_t element_bytes, void* out, int threads);

// mask [T]: carries and versions >= oldest; counts [S] of it, -1 where a version lies above the newest.
void version_mask(const Segments& segments, const int64_t* versions, const bool* carries, int64_t oldest,
                  int64_t newest, bool* mask, int64_t* counts, int threads);

}  // namespace perilune
