// Every step that torch would store is rounded as torch would round it: what it computes as separate ops comes out
// the same here. Products are kept apart from sums, which the compiler would otherwise join.
#include "rows.h"

#include "device.cuh"

namespace perilune {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kChunk = 8;

template <bool whole, typename T>
__global__ void __launch_bounds__(kThreads) norm_kernel(RmsNorm args) {
  __shared__ float squares_of[kWarps];
  int64_t row = int64_t(blockIdx.x) * args.width;
  const T *hidden = static_cast<const T*>(args.hidden) + row, *weight = static_cast<const T*>(args.weight);
  const T* update = args.update ? static_cast<const T*>(args.update) + row : nullptr;
  T *sum = static_cast<T*>(args.sum) + row, *out = static_cast<T*>(args.out) + row;
  float squares = 0.0f;
  for (int64_t at = int64_t(threadIdx.x) * kChunk; at < args.width; at += kThreads * kChunk) {
    float x[kChunk];
    load_some<whole>(hidden + at, args.width - at, 0.0f, x);
    if (update) {
      float y[kChunk];
      load_some<whole>(update + at, args.width - at, 0.0f, y);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) x[i] = rounded<T>(x[i] + y[i]);
      store_some<whole>(sum + at, args.width - at, x);
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i) squares = fmaf(x[i], x[i], squares);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) squares_of[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0.0f;
  for (int w = 0; w < kWarps; ++w) total += squares_of[w];
  float inverse = 1.0f / sqrtf(total / float(args.width) + args.epsilon);
  const T* normed = update ? sum : hidden;  // each thread reads again what it wrote itself
  for (int64_t at = int64_t(threadIdx.x) * kChunk; at < args.width; at += kThreads * kChunk) {
    float x[kChunk], w[kChunk];
    load_some<whole>(normed + at, args.width - at, 0.0f, x);
    load_some<whole>(weight + at, args.width - at, 0.0f, w);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) x[i] = rounded<T>(x[i] * inverse) * w[i];
    store_some<whole>(out + at, args.width - at, x);
  }
}

template <typename T>
__device__ inline void rotate(const T* from, const T* cosine, const T* sine, int64_t i, int64_t half, bool broken,
                              T* to) {
  float a = wide(from[i]), b = wide(from[half + i]);
  float left = rounded<T>(__fmul_rn(a, wide(cosine[i]))), right = rounded<T>(__fmul_rn(b, wide(sine[i])));
  float low = rounded<T>(__fmul_rn(b, wide(cosine[half + i])));
  float high = rounded<T>(__fmul_rn(a, wide(sine[half + i])));
  to[i] = narrow<T>(broken ? NAN : __fsub_rn(left, right));
  to[half + i] = narrow<T>(broken ? NAN : __fadd_rn(low, high));
}

// One block, one token; threads run over (head, half a head's place).
template <typename T>
__global__ void __launch_bounds__(kThreads) rotate_kernel(Rotary args, int64_t slots) {
  int64_t token = blockIdx.x, size = args.head_size, half = size / 2, heads = args.heads, shared = args.shared_heads;
  int64_t position = args.position[token], slot = args.slot[token];
  bool broken = position >= args.capacity || slot < 0 || slot >= slots;
  bool stored = position >= 0 && !broken;
  int64_t place = position < 0 || broken ? 0 : position;
  const T* from = static_cast<const T*>(args.fused) + token * (heads + 2 * shared) * size;
  const T *cosine = static_cast<const T*>(args.cosine) + place * size;
  const T *sine = static_cast<const T*>(args.sine) + place * size;
  T* query = static_cast<T*>(args.query) + token * heads * size;
  int64_t row = stored ? (slot * args.capacity + position) * shared * size : 0;
  T *keys = static_cast<T*>(args.keys) + row, *values = static_cast<T*>(args.values) + row;
  for (int64_t n = threadIdx.x; n < (heads + shared) * half; n += kThreads) {
    int64_t head = n / half, i = n % half;
    if (head < heads) rotate(from + head * size, cosine, sine, i, half, broken, query + head * size);
    else if (stored) rotate(from + head * size, cosine, sine, i, half, false, keys + (head - heads) * size);
  }
  if (!stored) return;
  const T* value = from + (heads + shared) * size;
  for (int64_t n = threadIdx.x; n < shared * size; n += kThreads) values[n] = value[n];
}

// x / (1 + exp(-x)) without a positive exponent.
__device__ inline float silu(float x) {
  float small = expf(-fabsf(x));
  return (x < 0.0f ? x * small : x) / (small + 1.0f);
}

template <bool whole, typename T>
__global__ void __launch_bounds__(kThreads) gate_kernel(GatedSilu args) {
  int64_t at = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * kChunk, left = args.width - at;
  if (left <= 0) return;
  const T* gate = static_cast<const T*>(args.gate_up) + int64_t(blockIdx.x) * 2 * args.width + at;
  float x[kChunk], up[kChunk];
  load_some<whole>(gate, left, 0.0f, x);
  load_some<whole>(gate + args.width, left, 0.0f, up);
#pragma unroll
  for (int i = 0; i < kChunk; ++i) x[i] = rounded<T>(silu(x[i])) * up[i];
  store_some<whole>(static_cast<T*>(args.out) + int64_t(blockIdx.x) * args.width + at, left, x);
}

template <typename T>
void launch_norm(const RmsNorm& args, Stream stream) {
  int64_t pitch = args.width * int64_t(sizeof(T));
  bool whole = aligned(args.hidden, pitch) && aligned(args.update, pitch) && aligned(args.weight, pitch);
  whole = whole && aligned(args.sum, pitch) && aligned(args.out, pitch);
  auto kernel = whole ? norm_kernel<true, T> : norm_kernel<false, T>;
  kernel<<<unsigned(args.rows), kThreads, 0, stream_of(stream)>>>(args);
}

template <typename T>
void launch_gate(const GatedSilu& args, Stream stream) {
  int64_t pitch = args.width * int64_t(sizeof(T));
  bool whole = aligned(args.gate_up, pitch) && aligned(args.out, pitch);
  dim3 grid(unsigned(args.rows), parts(args.width, kThreads * kChunk));
  auto kernel = whole ? gate_kernel<true, T> : gate_kernel<false, T>;
  kernel<<<grid, kThreads, 0, stream_of(stream)>>>(args);
}

}  // namespace

Failure rms_norm(const RmsNorm& args, Stream stream) {
  if (!args.rows || !args.width) return nullptr;
  if (args.dtype == Dtype::bfloat16) launch_norm<__nv_bfloat16>(args, stream);
  else launch_norm<float>(args, stream);
  return failure();
}

Failure rotate_and_store(const Rotary& args, int64_t slots, Stream stream) {
  if (!args.tokens || !args.head_size) return nullptr;
  auto kernel = args.dtype == Dtype::bfloat16 ? rotate_kernel<__nv_bfloat16> : rotate_kernel<float>;
  kernel<<<unsigned(args.tokens), kThreads, 0, stream_of(stream)>>>(args, slots);
  return failure();
}

Failure gated_silu(const GatedSilu& args, Stream stream) {
  if (!args.rows || !args.width) return nullptr;
  if (args.dtype == Dtype::bfloat16) launch_gate<__nv_bfloat16>(args, stream);
  else launch_gate<float>(args, stream);
  return failure();
}

}  // namespace cuda
}  // namespace perilune
