// Launchers of the ops on packed rows: the arguments and promises of ops/{packed_rows,segments,policy_gradient}.h, with
// pointers into the device's memory. One launch each, behind a memset in segment_starts, version_mask and
// policy_gradient; nothing waits.
//
// Values are not looked at on the host. A segment that falls or leaves 0..T-1 gives NaN, or -1 where results are
// integers: to sums, largest values and counts of that segment, to everything that is made by token. So do mean and
// maximum of a segment without tokens, and tokens for which the padded row is too short.
#pragma once
#include "../ops/policy_gradient.h"
#include "launch.h"

namespace perilune {
namespace cuda {

// cu_seqlens [S + 1] of T tokens.
struct Row {
  const int32_t* starts;
  int64_t count, tokens;
};

Failure row_layout(const Row& row, int64_t* positions, int64_t* segment, Stream stream);

// fill: fill_bytes bytes in the host's memory.
Failure pad(const Row& row, int64_t length, int64_t token_bytes, const void* packed, const void* fill,
            int64_t fill_bytes, void* padded, Stream stream);
Failure unpad(const Row& row, int64_t length, int64_t token_bytes, const void* padded, void* packed, Stream stream);

// An index that falls or leaves the range gives starts of -1.
Failure segment_starts(const int64_t* index, const Row& row, int32_t* starts, Stream stream);
Failure segment_sum(const Row& row, const void* values, bool mean, void* out, Real real, Stream stream);
Failure segment_max(const Row& row, const void* values, void* out, int64_t* index, Real real, Stream stream);
Failure segment_broadcast(const Row& row, const void* values, int64_t element_bytes, void* out, Stream stream);
Failure version_mask(const Row& row, const int64_t* versions, const bool* carries, int64_t oldest, int64_t newest,
                     bool* mask, int64_t* counts, Stream stream);

struct Loss {
  const void *logprob, *coefficient, *reference, *weight;  // as in ops/policy_gradient.h
  double tau, length;
  Real real;
};

// losses: workspace of S + 1 doubles.
Failure policy_gradient(const Row& row, const Loss& args, double* losses, void* loss, void* drift,
                        Stream stream);
Failure policy_gradient_backward(const Row& row, const Loss& args, const void* drift, const void* g_loss,
                                 void* gradient, Stream stream);

}  // namespace cuda
}  // namespace perilune
