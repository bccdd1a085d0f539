#include "slot_attention.h"

#include "spans.cuh"

namespace perilune {
namespace cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32, kHeads = 4, kChunk = 8, kLargest = int(kLargestHeadSize);

__device__ inline int64_t whole_spans(int64_t keys) { return (keys + kSpan - 1) / kSpan; }

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
    query[h][i] = real ? wide(*from) * (args.scale * kLog2e) : 0.0f;
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
      float keep = exp2f(maximum[h] - now), weight = tid < here ? exp2f(scores[h] - now) : 0.0f;
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

// One warp, one (token, head): spans are merged in order, as many as the position has.
template <typename T>
__global__ void __launch_bounds__(kThreads) merge_kernel(SlotAttention args, int64_t slots, float* workspace) {
  constexpr int kMost = kLargest / 32;
  int lane = threadIdx.x % 32, size = int(args.head_size);
  int64_t which = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (which >= args.tokens * args.heads) return;
  int64_t token = which / args.heads, head = which % args.heads;
  int64_t position = args.position[token], slot = args.slot[token], pitch = size + 2;
  bool broken = position >= args.capacity || slot < 0 || slot >= slots;
  int spans = broken || position < 0 ? 0 : int(whole_spans(position + 1));
  follow();
  const float* from = place_of(workspace, args, token, head, 0);
  float maximum = kLowest, total = 0.0f, sums[kMost];
  for (int s = lane; s < spans; s += 32) maximum = fmaxf(maximum, from[s * pitch]);
  maximum = warp_max(maximum);
#pragma unroll
  for (int i = 0; i < kMost; ++i) sums[i] = 0.0f;
  for (int base = 0; base < spans; base += 32) {
    int s = base + lane;
    float weight = s < spans ? exp2f(from[s * pitch] - maximum) : 0.0f;
    if (s < spans) total = fmaf(from[s * pitch + 1], weight, total);
#pragma unroll 4
    for (int j = 0; j < min(32, spans - base); ++j) {
      float own = __shfl_sync(kWarp, weight, j);
      const float* values = from + (base + j) * pitch + 2;
#pragma unroll
      for (int i = 0; i < kMost; ++i)
        if (i * 32 + lane < size) sums[i] = fmaf(own, values[i * 32 + lane], sums[i]);
    }
  }
  total = warp_sum(total);
  T* out = static_cast<T*>(args.out) + which * size;
#pragma unroll
  for (int i = 0; i < kMost; ++i)
    if (i * 32 + lane < size) out[i * 32 + lane] = narrow<T>(broken ? NAN : spans ? sums[i] / total : 0.0f);
}

template <typename T>
void launch_spans(const SlotAttention& args, int64_t slots, float* workspace, Stream stream) {
  int64_t pitch = args.head_size * int64_t(sizeof(T)), group = args.heads / args.shared_heads;
  bool whole = aligned(args.keys, pitch) && aligned(args.values, pitch);
  dim3 grid(unsigned(args.tokens * args.shared_heads), unsigned(spans_of(args.capacity)), parts(group, kHeads));
  auto kernel = whole ? attend_kernel<true, T> : attend_kernel<false, T>;
  kernel<<<grid, kThreads, 0, stream_of(stream)>>>(args, slots, workspace);
}

template <typename T>
void launch(const SlotAttention& args, int64_t slots, float* workspace, Stream stream) {
  // A cache without a place has no spans: all that is left is zeros, and NaN for a position out of range.
  if (args.capacity && by_products(args)) attend_by_products(args, slots, workspace, stream);
  else if (args.capacity) launch_spans<T>(args, slots, workspace, stream);
  // The merge is brought to the processors while the last spans are still at work.
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(parts(args.tokens * args.heads, kWarps));
  config.blockDim = dim3(kThreads);
  config.stream = stream_of(stream);
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, merge_kernel<T>, args, slots, workspace);
}

}  // namespace

Failure slot_attention(const SlotAttention& args, int64_t slots, float* workspace, Stream stream) {
  if (!args.tokens || !args.heads || !args.head_size) return nullptr;
  if (args.dtype == Dtype::bfloat16) launch<__nv_bfloat16>(args, slots, workspace, stream);
  else launch<float>(args, slots, workspace, stream);
  return failure();
}

}  // namespace cuda
}  // namespace perilune
