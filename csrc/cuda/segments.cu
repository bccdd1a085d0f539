// One block reduces one segment: thread i takes tokens i, i + 256, ... in order, then warps and blocks add up in one
// order. What belongs to tokens is one thread each.
#include "segments.cuh"

namespace perilune {
namespace cuda {
namespace {

// The first token of a segment writes its start, and those of the empty ones before it. A token that falls behind the
// one before it, or leaves the range, sets all of them to -1, whoever comes first.
__global__ void __launch_bounds__(kThreads) starts_kernel(const int64_t* index, Row row, int32_t* starts) {
  int64_t token = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (token > row.tokens) return;
  int64_t before = token > 0 ? index[token - 1] : -1, here = token < row.tokens ? index[token] : row.count;
  bool fits = here >= before && here >= 0 && (token == row.tokens || here < row.count);
  int64_t first = fits ? before + 1 : 0, last = fits ? here : row.count;
  int value = fits ? int(token) : -1;
  for (int64_t s = first < 0 ? 0 : first; s <= last; ++s) atomicMin(starts + s, value);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) sum_kernel(Row row, const T* values, bool mean, T* out) {
  Span span = span_of(row, blockIdx.x);
  double sums[1] = {0.0};
#pragma unroll 4
  for (int64_t t = threadIdx.x; t < span.tokens; t += kThreads) sums[0] += double(values[span.start + t]);
  block_sum(sums);
  if (threadIdx.x) return;
  bool known = span.fits && !(mean && span.tokens == 0);
  out[blockIdx.x] = T(known ? sums[0] / double(mean ? span.tokens : 1) : not_a_number());
}

struct Candidate {
  double value;
  int64_t token;  // -1: none yet
};

// NaN before numbers, large before small, early before late.
__device__ inline bool leads(const Candidate& a, const Candidate& b) {
  if (a.token < 0 || b.token < 0) return b.token < 0;
  bool odd_a = a.value != a.value, odd_b = b.value != b.value;
  if (odd_a != odd_b) return odd_a;
  if (!odd_a && a.value != b.value) return a.value > b.value;
  return a.token < b.token;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) max_kernel(Row row, const T* values, T* out, int64_t* index) {
  __shared__ Candidate warps[kWarps];
  Span span = span_of(row, blockIdx.x);
  Candidate best = {0.0, -1};
  for (int64_t t = threadIdx.x; t < span.tokens; t += kThreads) {
    Candidate next = {double(values[span.start + t]), span.start + t};
    if (leads(next, best)) best = next;
  }
#pragma unroll
  for (int apart = 16; apart; apart >>= 1) {
    Candidate other = {__shfl_xor_sync(0xffffffffu, best.value, apart),
                       __shfl_xor_sync(0xffffffffu, best.token, apart)};
    if (leads(other, best)) best = other;
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < kWarps; ++w)
    if (leads(warps[w], best)) best = warps[w];
  out[blockIdx.x] = best.token < 0 ? T(not_a_number()) : values[best.token];
  index[blockIdx.x] = best.token;
}

template <typename Word>
__global__ void __launch_bounds__(kThreads) broadcast_kernel(Row row, const Word* values, Word* out) {
  bool fits = row_fits(row);
  int64_t token = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (token < row.tokens) out[token] = fits ? values[segment_of(row, token)] : Word(~Word(0));
}

template <typename Word>
Failure broadcast_words(const Row& row, const void* values, void* out, Stream stream) {
  broadcast_kernel<<<blocks_for(row.tokens), kThreads, 0, stream_of(stream)>>>(
      row, static_cast<const Word*>(values), static_cast<Word*>(out));
  return failure();
}

__global__ void __launch_bounds__(kThreads) mask_kernel(Row row, const int64_t* versions, const bool* carries,
                                                        int64_t oldest, int64_t newest, bool* mask, int64_t* counts) {
  Span span = span_of(row, blockIdx.x);
  int sums[2] = {0, 0};
  for (int64_t t = threadIdx.x; t < span.tokens; t += kThreads) {
    int64_t version = versions[span.start + t];
    bool kept = carries[span.start + t] && version >= oldest;
    mask[span.start + t] = kept;
    sums[0] += kept;
    sums[1] += version > newest;
  }
  block_sum(sums);
  if (threadIdx.x == 0) counts[blockIdx.x] = span.fits && sums[1] == 0 ? sums[0] : -1;
}

}  // namespace

Failure segment_starts(const int64_t* index, const Row& row, int32_t* starts, Stream stream) {
  cudaError_t error = cudaMemsetAsync(starts, 0x7f, size_t(row.count + 1) * sizeof(int32_t), stream_of(stream));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  starts_kernel<<<blocks_for(row.tokens + 1), kThreads, 0, stream_of(stream)>>>(index, row, starts);
  return failure();
}

Failure segment_sum(const Row& row, const void* values, bool mean, void* out, Real real, Stream stream) {
  if (row.count == 0) return nullptr;
  unsigned blocks = unsigned(row.count);
  if (real == Real::float32)
    sum_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(row, static_cast<const float*>(values), mean,
                                                           static_cast<float*>(out));
  else
    sum_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(row, static_cast<const double*>(values), mean,
                                                           static_cast<double*>(out));
  return failure();
}

Failure segment_max(const Row& row, const void* values, void* out, int64_t* index, Real real, Stream stream) {
  if (row.count == 0) return nullptr;
  unsigned blocks = unsigned(row.count);
  if (real == Real::float32)
    max_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(row, static_cast<const float*>(values),
                                                           static_cast<float*>(out), index);
  else
    max_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(row, static_cast<const double*>(values),
                                                           static_cast<double*>(out), index);
  return failure();
}

Failure segment_broadcast(const Row& row, const void* values, int64_t element_bytes, void* out, Stream stream) {
  if (row.tokens == 0) return nullptr;
  auto run = element_bytes == 1   ? broadcast_words<uint8_t>
             : element_bytes == 2 ? broadcast_words<uint16_t>
             : element_bytes == 4 ? broadcast_words<uint32_t>
                                  : broadcast_words<uint64_t>;
  return run(row, values, out, stream);
}

Failure version_mask(const Row& row, const int64_t* versions, const bool* carries, int64_t oldest, int64_t newest,
                     bool* mask, int64_t* counts, Stream stream) {
  // Tokens that no fitting segment holds carry nothing.
  cudaError_t error = cudaMemsetAsync(mask, 0, size_t(row.tokens), stream_of(stream));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (row.count == 0) return nullptr;
  mask_kernel<<<unsigned(row.count), kThreads, 0, stream_of(stream)>>>(row, versions, carries, oldest, newest, mask,
                                                                       counts);
  return failure();
}

}  // namespace cuda
}  // namespace perilune
