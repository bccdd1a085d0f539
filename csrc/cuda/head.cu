#include "device.cuh"
#include "gradient.cuh"
#include "head.h"

namespace perilune {
namespace cuda {
namespace {

constexpr int kWarps = 8;

// One warp, one slab of one row: 32 logits a lane stay in registers, so the maximum is known before the sums.
__global__ void __launch_bounds__(kWarps * 32)
    stats_kernel(Block block, const int64_t* target, Partial* partials, float* chosen) {
  int lane = threadIdx.x & 31;
  int64_t row = blockIdx.x, slab = int64_t(blockIdx.y) * kWarps + (threadIdx.x >> 5), first = slab * kSlab;
  if (first >= block.columns) return;
  int count = int(min(kSlab, block.columns - first));
  const float* logits = block.logits + row * block.pitch + first;
  float scale = block.scale[row], values[32], maximum = kLowest;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    int at = (i * 32 + lane) * 4;
    float four[4] = {kLowest, kLowest, kLowest, kLowest};
    if (at + 4 <= count) {
      float4 loaded = *reinterpret_cast<const float4*>(logits + at);
      four[0] = __fmul_rn(loaded.x, scale), four[1] = __fmul_rn(loaded.y, scale);
      four[2] = __fmul_rn(loaded.z, scale), four[3] = __fmul_rn(loaded.w, scale);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (at + j < count) four[j] = __fmul_rn(logits[at + j], scale);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      values[i * 4 + j] = four[j];
      maximum = fmaxf(maximum, four[j]);
    }
  }
  maximum = warp_max(maximum);
  float sum[2] = {0.0f, 0.0f}, weighted[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    float below = values[i] - maximum, e = __expf(below);
    sum[i & 1] += e;
    weighted[i & 1] = fmaf(e, below, weighted[i & 1]);
  }
  float all = warp_sum(sum[0] + sum[1]), all_weighted = warp_sum(weighted[0] + weighted[1]);
  if (lane) return;
  partials[row * block.slabs + block.start / kSlab + slab] = {maximum, all, all_weighted, 0.0f};
  if (!target) return;
  int64_t at = target[row] - block.start - first;
  if (at >= 0 && at < count) chosen[row] = __fmul_rn(logits[at], scale);
}

// One warp, one row. fp64: the order in which lanes share the slabs follows from their number alone.
__global__ void __launch_bounds__(kWarps * 32)
    finish_kernel(const Partial* partials, const float* chosen, int64_t rows, int64_t slabs, float* logprob,
                  float* entropy, float* lse) {
  int lane = threadIdx.x & 31;
  int64_t row = int64_t(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  if (row >= rows) return;
  const float4* parts = reinterpret_cast<const float4*>(partials + row * slabs);
  double maximum = kLowest, sum = 0.0, weighted = 0.0;
  for (int64_t s = lane; s < slabs; s += 32) maximum = fmax(maximum, double(parts[s].x));
  maximum = warp_max(maximum);
  for (int64_t s = lane; s < slabs; s += 32) {
    float4 part = parts[s];
    double shift = part.x - maximum, keep = exp(shift);
    sum += part.y * keep;
    weighted += (part.z + part.y * shift) * keep;
  }
  sum = warp_sum(sum);
  weighted = warp_sum(weighted);
  if (lane) return;
  double normaliser = log(sum);
  logprob[row] = float((chosen[row] - maximum) - normaliser);
  if (entropy) entropy[row] = float(normaliser - weighted / sum);
  if (lse) lse[row] = float(maximum + normaliser);
}

constexpr int kColumns = 8, kGradientThreads = 128, kGradientRows = 8;

// A thread keeps the statistics of eight tokens and walks down some vocabulary rows.
template <bool whole, typename T>
__global__ void __launch_bounds__(kGradientThreads) gradient_kernel(LogitGradient args) {
  int64_t token = (int64_t(blockIdx.x) * kGradientThreads + threadIdx.x) * kColumns;
  int64_t left = args.tokens - token;
  if (left <= 0) return;
  int64_t row = int64_t(blockIdx.y) * kGradientRows, end = min(row + kGradientRows, args.rows);
  T* out = static_cast<T*>(args.out);
  Slope slopes[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    slopes[i] = slope_of(args.statistics + (i < left ? token + i : token), args.tokens);
  for (int64_t r = row; r < end; ++r) {
    int64_t at = r * args.pitch + token;
    float values[kColumns];
    load_some<whole>(args.logits + at, left, 0.0f, values);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) values[i] = slope_at(slopes[i], values[i]);
    store_some<whole>(out + at, left, values);
  }
#pragma unroll 1
  for (int64_t t = token; t < token + min(left, int64_t(kColumns)); ++t) {
    int64_t hit = args.target[t] - args.start;
    if (hit < row || hit >= end) continue;
    int64_t at = hit * args.pitch + t;
    out[at] = narrow<T>(on_target(args.statistics + t, args.tokens, args.logits[at]));
  }
}

template <typename T>
void launch_gradient(const LogitGradient& args, Stream stream) {
  dim3 grid(parts(args.tokens, kGradientThreads * kColumns), parts(args.rows, kGradientRows));
  bool whole = aligned(args.logits, args.pitch * 4) && aligned(args.out, args.pitch * int64_t(sizeof(T)));
  auto kernel = whole ? gradient_kernel<true, T> : gradient_kernel<false, T>;
  kernel<<<grid, kGradientThreads, 0, stream_of(stream)>>>(args);
}

}  // namespace

Failure stats(const Block& block, const int64_t* target, Partial* partials, float* chosen, Stream stream) {
  if (!block.rows || !block.columns) return nullptr;
  dim3 grid(unsigned(block.rows), parts(slabs_of(block.columns), kWarps));
  stats_kernel<<<grid, kWarps * 32, 0, stream_of(stream)>>>(block, target, partials, chosen);
  return failure();
}

Failure finish(const Partial* partials, const float* chosen, int64_t rows, int64_t slabs, float* logprob,
               float* entropy, float* lse, Stream stream) {
  if (!rows) return nullptr;
  finish_kernel<<<parts(rows, kWarps), kWarps * 32, 0, stream_of(stream)>>>(partials, chosen, rows, slabs, logprob,
                                                                            entropy, lse);
  return failure();
}

Failure gradient(const LogitGradient& args, Stream stream) {
  if (!args.rows || !args.tokens) return nullptr;
  if (args.dtype == Dtype::bfloat16) launch_gradient<__nv_bfloat16>(args, stream);
  else launch_gradient<float>(args, stream);
  return failure();
}

}  // namespace cuda
}  // namespace perilune
