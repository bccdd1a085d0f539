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
  float scale = fitting(block.scale[row]), values[32], maximum = kLowest;
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
  double normaliser = log(sum), own = (chosen[row] - maximum) - normaliser;
  // Products that were fused with the difference are not rounded as the maximum is: the sum may lie below 1.
  logprob[row] = float(own > 0.0 ? 0.0 : own);
  if (entropy) entropy[row] = float(normaliser - weighted / sum);
  if (lse) lse[row] = float(maximum + normaliser);
}

constexpr int kColumns = 4, kGradientThreads = 128, kGradientRows = 32, kAtOnce = 4;

// One statistic of up to four tokens.
__device__ inline void load_statistic(const float* from, int left, bool even, float (&to)[kColumns]) {
  if (even) {
    float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) to[i] = from[i < left ? i : 0];
}

__device__ inline void store_four(float* to, const float (&from)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

__device__ inline void store_four(__nv_bfloat16* to, const float (&from)[4]) {
  __nv_bfloat162 low = __floats2bfloat162_rn(from[0], from[1]), high = __floats2bfloat162_rn(from[2], from[3]);
  *reinterpret_cast<uint2*>(to) = make_uint2(reinterpret_cast<unsigned&>(low), reinterpret_cast<unsigned&>(high));
}

// A thread keeps the statistics of four tokens and walks down some vocabulary rows, several of them under way.
template <bool whole, typename T>
__global__ void __launch_bounds__(kGradientThreads) gradient_kernel(LogitGradient args, bool even) {
  int64_t token = (int64_t(blockIdx.x) * kGradientThreads + threadIdx.x) * kColumns;
  if (token >= args.tokens) return;
  int left = int(min(int64_t(kColumns), args.tokens - token));
  int64_t row = int64_t(blockIdx.y) * kGradientRows, end = min(row + kGradientRows, args.rows);
  T* out = static_cast<T*>(args.out);
  float own[7][kColumns];
#pragma unroll
  for (int k = 0; k < 7; ++k) load_statistic(args.statistics + k * args.tokens + token, left, even, own[k]);
  Slope slopes[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    float column[7];
#pragma unroll
    for (int k = 0; k < 7; ++k) column[k] = own[k][i];
    slopes[i] = slope_of(column, 1);
  }
  for (int64_t r = row; r < end; r += kAtOnce) {
    float values[kAtOnce][kColumns];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const float* from = args.logits + min(r + n, end - 1) * args.pitch + token;
      if (whole && left == kColumns) {
        float4 four = __ldcs(reinterpret_cast<const float4*>(from));
        values[n][0] = four.x, values[n][1] = four.y, values[n][2] = four.z, values[n][3] = four.w;
      } else {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) values[n][i] = i < left ? from[i] : 0.0f;
      }
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (r + n >= end) break;
#pragma unroll
      for (int i = 0; i < kColumns; ++i) values[n][i] = slope_at(slopes[i], values[n][i]);
      T* to = out + (r + n) * args.pitch + token;
      if (whole && left == kColumns) {
        store_four(to, values[n]);
      } else {
#pragma unroll
        for (int i = 0; i < kColumns; ++i)
          if (i < left) to[i] = narrow<T>(values[n][i]);
      }
    }
  }
#pragma unroll 1
  for (int64_t t = token; t < token + left; ++t) {
    int64_t hit = args.target[t] - args.start;
    if (hit < row || hit >= end) continue;
    int64_t at = hit * args.pitch + t;
    out[at] = narrow<T>(on_target(args.statistics + t, args.tokens));
  }
}

template <typename T>
void launch_gradient(const LogitGradient& args, Stream stream) {
  dim3 grid(parts(args.tokens, kGradientThreads * kColumns), parts(args.rows, kGradientRows));
  bool whole = aligned(args.logits, args.pitch * 4) && aligned(args.out, args.pitch * int64_t(sizeof(T)));
  auto kernel = whole ? gradient_kernel<true, T> : gradient_kernel<false, T>;
  kernel<<<grid, kGradientThreads, 0, stream_of(stream)>>>(args, aligned(args.statistics, args.tokens * 4));
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
