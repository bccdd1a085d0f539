#include "slot_attention.h"

#include "device.cuh"

namespace perilune {
namespace cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kHeads = 4, kChunk = 8, kLargest = int(kLargestHeadSize);

__device__ inline int64_t whole_spans(int64_t keys) { return (keys + kSpan - 1) / kSpan; }

// Of one (token, head, span) in the workspace: maximum, sum, then the weighted values.
__device__ inline float* place_of(float* workspace, const SlotAttention& args, int64_t token, int64_t head,
                                  int64_t span) {
  return workspace + ((token * args.heads + head) * whole_spans(args.capacity) + span) * (args.head_size + 2);
}

// One block: one token, one span of keys, up to four query heads of one shared head. Scores: a thread takes a key.
// Sums: a thread takes eight values of every so-manieth key; these parts are added in order at the end.
template <bool whole, typename T>
__global__ void __launch_bounds__(kThreads, 4) attend_kernel(SlotAttention args, int64_t slots, float* workspace) {
  __shared__ float query[kHeads][kLargest], weights[kHeads][kThreads], reduced[kHeads][kWarps];
  __shared__ float added[kThreads][kChunk];
  int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
  int64_t token = blockIdx.x / args.shared_heads, shared = blockIdx.x % args.shared_heads, span = blockIdx.y;
  int64_t size = args.head_size, group = args.heads / args.shared_heads, offset = int64_t(blockIdx.z) * kHeads;
  int64_t head = shared * group + offset, position = args.position[token], slot = args.slot[token];
  int heads = int(min(int64_t(kHeads), group - offset));
  int64_t first = span * kSpan, end = min(first + kSpan, position + 1);
  if (first >= end || position >= args.capacity || slot < 0 || slot >= slots) return;

  for (int n = tid; n < kHeads * kLargest; n += kThreads) {
    int h = n / kLargest, i = n % kLargest;
    bool real = h < heads && i < size;
    const T* from = static_cast<const T*>(args.query) + (token * args.heads + head + h) * size + i;
    query[h][i] = real ? wide(*from) * args.scale : 0.0f;
  }
  __syncthreads();

  int64_t stride = args.shared_heads * size, base = (slot * args.capacity * args.shared_heads + shared) * size;
  const T *keys = static_cast<const T*>(args.keys) + base, *values = static_cast<const T*>(args.values) + base;
  int chunks = int((size + kChunk - 1) / kChunk), groups = kThreads / chunks, own = tid % chunks, part = tid / chunks;
  float maximum[kHeads], total[kHeads], sums[kHeads][kChunk];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    maximum[h] = kLowest;
    total[h] = 0.0f;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sums[h][i] = 0.0f;
  }

  for (int64_t block = first; block < end; block += kThreads) {
    int here = int(min(int64_t(kThreads), end - block));
    float scores[kHeads] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (tid < here) {
      const T* key = keys + (block + tid) * stride;
      for (int c = 0; c < chunks; ++c) {
        float k[kChunk];
        load_some<whole>(key + c * kChunk, size - c * kChunk, 0.0f, k);
#pragma unroll
        for (int i = 0; i < kChunk; ++i)
#pragma unroll
          for (int h = 0; h < kHeads; ++h) scores[h] = fmaf(query[h][c * kChunk + i], k[i], scores[h]);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (tid >= here) scores[h] = kLowest;
      float most = warp_max(scores[h]);
      if (lane == 0) reduced[h][warp] = most;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float now = maximum[h];
      for (int w = 0; w < kWarps; ++w) now = fmaxf(now, reduced[h][w]);
      float keep = expf(maximum[h] - now), weight = tid < here ? expf(scores[h] - now) : 0.0f;
      maximum[h] = now;
      weights[h][tid] = weight;
      total[h] = total[h] * keep + weight;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) sums[h][i] *= keep;
    }
    __syncthreads();
    if (part < groups) {
      for (int k = part; k < here; k += groups) {
        float v[kChunk];
        load_some<whole>(values + (block + k) * stride + own * kChunk, size - own * kChunk, 0.0f, v);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          float weight = weights[h][k];
#pragma unroll
          for (int i = 0; i < kChunk; ++i) sums[h][i] = fmaf(weight, v[i], sums[h][i]);
        }
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h >= heads) break;
    float* to = place_of(workspace, args, token, head + h, span);
    float all = warp_sum(total[h]);
    if (lane == 0) reduced[h][warp] = all;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) added[tid][i] = sums[h][i];
    __syncthreads();
    if (tid == 0) {
      to[0] = maximum[h];
      to[1] = ((reduced[h][0] + reduced[h][1]) + reduced[h][2]) + reduced[h][3];
    }
    for (int64_t i = tid; i < size; i += kThreads) {
      float sum = 0.0f;
      for (int g = 0; g < groups; ++g) sum += added[g * chunks + i / kChunk][i % kChunk];
      to[2 + i] = sum;
    }
    __syncthreads();
  }
}

// One block, one (token, head): spans are merged in order, as many as the position has.
template <typename T>
__global__ void __launch_bounds__(kThreads) merge_kernel(SlotAttention args, int64_t slots, float* workspace) {
  int64_t token = blockIdx.x / args.heads, head = blockIdx.x % args.heads;
  int64_t position = args.position[token], slot = args.slot[token], size = args.head_size;
  bool broken = position >= args.capacity || slot < 0 || slot >= slots;
  int64_t spans = broken || position < 0 ? 0 : whole_spans(position + 1);
  float maximum = kLowest, total = 0.0f;
  for (int64_t s = 0; s < spans; ++s) maximum = fmaxf(maximum, place_of(workspace, args, token, head, s)[0]);
  for (int64_t s = 0; s < spans; ++s) {
    const float* from = place_of(workspace, args, token, head, s);
    total = fmaf(from[1], expf(from[0] - maximum), total);
  }
  T* out = static_cast<T*>(args.out) + (token * args.heads + head) * size;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) {
    float sum = 0.0f;
    for (int64_t s = 0; s < spans; ++s) {
      const float* from = place_of(workspace, args, token, head, s);
      sum = fmaf(from[2 + i], expf(from[0] - maximum), sum);
    }
    out[i] = narrow<T>(broken ? NAN : spans ? sum / total : 0.0f);
  }
}

template <typename T>
void launch(const SlotAttention& args, int64_t slots, float* workspace, Stream stream) {
  int64_t pitch = args.head_size * int64_t(sizeof(T)), group = args.heads / args.shared_heads;
  bool whole = aligned(args.keys, pitch) && aligned(args.values, pitch);
  dim3 grid(unsigned(args.tokens * args.shared_heads), unsigned(spans_of(args.capacity)), parts(group, kHeads));
  auto kernel = whole ? attend_kernel<true, T> : attend_kernel<false, T>;
  kernel<<<grid, kThreads, 0, stream_of(stream)>>>(args, slots, workspace);
  merge_kernel<T><<<unsigned(args.tokens * args.heads), kThreads, 0, stream_of(stream)>>>(args, slots, workspace);
}

}  // namespace

Failure slot_attention(const SlotAttention& args, int64_t slots, float* workspace, Stream stream) {
  if (!args.tokens || !args.heads || !args.head_size || !args.capacity) return nullptr;
  if (args.dtype == Dtype::bfloat16) launch<__nv_bfloat16>(args, slots, workspace, stream);
  else launch<float>(args, slots, workspace, stream);
  return failure();
}

}  // namespace cuda
}  // namespace perilune
