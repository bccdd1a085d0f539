#include "logits.h"

#include "device.cuh"
#include "gradient.cuh"

namespace perilune {
namespace cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32, kChunk = 8;
constexpr int kGradientThreads = 256, kGradientChunks = 2;

struct Sums {
  float maximum, sum, weighted;
};

__device__ inline void raise_to(Sums& sums, float maximum) {
  float shift = sums.maximum - maximum, keep = __expf(shift);
  sums.weighted = fmaf(sums.sum, shift, sums.weighted) * keep;
  sums.sum *= keep;
  sums.maximum = maximum;
}

// One block, one row. Which thread adds which logits, and in which order, is the same for rows that can be read 16
// bytes at a time and for those that can not.
template <bool whole, typename T>
__global__ void __launch_bounds__(kThreads)
    logprob_kernel(Logits args, const float* scales, float* logprob, float* entropy, float* lse) {
  __shared__ Sums merged[kWarps];
  int64_t row = blockIdx.x;
  const T* logits = static_cast<const T*>(args.logits) + row * args.stride;
  float scale = fitting(scales[row]);
  Sums sums = {kLowest, 0.0f, 0.0f};
  for (int64_t at = int64_t(threadIdx.x) * kChunk; at < args.vocabulary; at += kThreads * kChunk) {
    float values[kChunk], most = kLowest;
    int64_t left = args.vocabulary - at;
    load_some<whole>(logits + at, left, 0.0f, values);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      values[i] = i < left ? __fmul_rn(values[i], scale) : -INFINITY;
      most = fmaxf(most, values[i]);
    }
    if (most > sums.maximum) raise_to(sums, most);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      float below = bounded(values[i] - sums.maximum), e = __expf(below);
      sums.sum += e;
      sums.weighted = fmaf(e, below, sums.weighted);
    }
  }
  raise_to(sums, warp_max(sums.maximum));
  sums.sum = warp_sum(sums.sum);
  sums.weighted = warp_sum(sums.weighted);
  if (threadIdx.x % 32 == 0) merged[threadIdx.x / 32] = sums;
  __syncthreads();
  if (threadIdx.x) return;
  double maximum = kLowest, sum = 0.0, weighted = 0.0;
  for (int w = 0; w < kWarps; ++w) maximum = fmax(maximum, double(merged[w].maximum));
  for (int w = 0; w < kWarps; ++w) {
    double shift = merged[w].maximum - maximum, keep = exp(shift);
    sum += merged[w].sum * keep;
    weighted += (merged[w].weighted + merged[w].sum * shift) * keep;
  }
  int64_t target = args.target[row];
  bool inside = target >= 0 && target < args.vocabulary;
  double normaliser = log(sum), chosen = inside ? __fmul_rn(wide(logits[target]), scale) : NAN;
  logprob[row] = float((chosen - maximum) - normaliser);
  entropy[row] = float(normaliser - weighted / sum);
  lse[row] = float(maximum + normaliser);
}

template <bool whole, typename T>
__global__ void __launch_bounds__(kGradientThreads)
    logits_gradient_kernel(Logits args, const float* statistics, T* out) {
  int64_t row = blockIdx.x, target = args.target[row];
  const T* logits = static_cast<const T*>(args.logits) + row * args.stride;
  Slope slope = slope_of(statistics + row, args.tokens);
#pragma unroll
  for (int chunk = 0; chunk < kGradientChunks; ++chunk) {
    int64_t block = int64_t(blockIdx.y) * kGradientChunks + chunk;
    int64_t at = (block * kGradientThreads + threadIdx.x) * kChunk, left = args.vocabulary - at;
    if (left <= 0) return;
    float values[kChunk];
    load_some<whole>(logits + at, left, 0.0f, values);
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
      values[i] = slope_of_logprob(slope, bounded(logprob_of(values[i], slope.scale, slope.lse)));
    T* to = out + row * args.vocabulary;
    store_some<whole>(to + at, left, values);
    if (target >= at && target < at + min(left, int64_t(kChunk)))
      to[target] = narrow<T>(on_target(statistics + row, args.tokens));
  }
}

template <typename T>
void launch_logprob(const Logits& args, const float* scale, float* logprob, float* entropy, float* lse,
                    Stream stream) {
  bool whole = aligned(args.logits, args.stride * int64_t(sizeof(T)));
  auto kernel = whole ? logprob_kernel<true, T> : logprob_kernel<false, T>;
  kernel<<<unsigned(args.tokens), kThreads, 0, stream_of(stream)>>>(args, scale, logprob, entropy, lse);
}

template <typename T>
void launch_gradient(const Logits& args, const float* statistics, void* out, Stream stream) {
  int64_t size = sizeof(T);
  bool whole = aligned(args.logits, args.stride * size) && aligned(out, args.vocabulary * size);
  dim3 grid(unsigned(args.tokens), parts(args.vocabulary, kGradientThreads * kGradientChunks * kChunk));
  auto kernel = whole ? logits_gradient_kernel<true, T> : logits_gradient_kernel<false, T>;
  kernel<<<grid, kGradientThreads, 0, stream_of(stream)>>>(args, statistics, static_cast<T*>(out));
}

}  // namespace

Failure logits_logprob(const Logits& args, const float* scale, float* logprob, float* entropy, float* lse,
                       Stream stream) {
  if (!args.tokens) return nullptr;
  auto launch = args.dtype == Dtype::bfloat16 ? launch_logprob<__nv_bfloat16> : launch_logprob<float>;
  launch(args, scale, logprob, entropy, lse, stream);
  return failure();
}

Failure logits_gradient(const Logits& args, const float* statistics, void* out, Stream stream) {
  if (!args.tokens || !args.vocabulary) return nullptr;
  auto launch = args.dtype == Dtype::bfloat16 ? launch_gradient<__nv_bfloat16> : launch_gradient<float>;
  launch(args, statistics, out, stream);
  return failure();
}

}  // namespace cuda
}  // namespace perilune
