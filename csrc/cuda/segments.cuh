// What the kernels of packed rows share: the span of a segment, the segment of a token, sums over a block.
#pragma once
#include "device.cuh"
#include "packed_rows.h"

namespace perilune {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

inline unsigned blocks_for(int64_t items) { return unsigned((items + kThreads - 1) / kThreads); }

struct Span {
  int64_t start, tokens;
  bool fits;  // false: no token of it may be touched
};

__device__ inline Span span_of(const Row& row, int64_t segment) {
  int64_t start = row.starts[segment], end = row.starts[segment + 1];
  bool fits = start >= 0 && start <= end && end <= row.tokens && (segment > 0 || start == 0) &&
              (segment + 1 < row.count || end == row.tokens);
  return {start, fits ? end - start : 0, fits};
}

// Whether every segment fits, and so every token lies in one; for all threads of a block together.
__device__ inline bool row_fits(const Row& row) {
  bool wrong = row.count == 0 && row.tokens > 0;
  for (int64_t s = threadIdx.y * blockDim.x + threadIdx.x; s < row.count; s += kThreads)
    wrong |= !span_of(row, s).fits;
  return !__syncthreads_or(wrong);
}

// The segment of a token of a row that fits: the last that starts at or before it.
__device__ inline int64_t segment_of(const Row& row, int64_t token) {
  int64_t low = 0, high = row.count - 1;
  while (low < high) {
    int64_t middle = (low + high + 1) / 2;
    if (row.starts[middle] <= token) low = middle;
    else high = middle - 1;
  }
  return low;
}

// Sums over the threads of a block, in one order; valid in thread 0. Safe to call again.
template <int N, typename T>
__device__ inline void block_sum(T (&sums)[N]) {
  __shared__ T warps[N][kWarps];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int apart = 16; apart; apart >>= 1) sums[n] += __shfl_down_sync(0xffffffffu, sums[n], apart);
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n)
    if (lane == 0) warps[n][warp] = sums[n];
  __syncthreads();
  if (threadIdx.x) return;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    sums[n] = warps[n][0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sums[n] += warps[n][w];
  }
}

__device__ inline double not_a_number() { return __longlong_as_double(-1ll); }

}  // namespace
}  // namespace cuda
}  // namespace perilune
