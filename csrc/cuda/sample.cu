#include "device.cuh"
#include "head.h"

namespace perilune {
namespace cuda {
namespace {

constexpr int kWarps = 8;

struct Counter {
  uint32_t words[4];
};

__device__ inline Counter philox(uint32_t block, uint64_t position, uint64_t key) {
  uint32_t c0 = block, c1 = uint32_t(position), c2 = uint32_t(position >> 32), c3 = 0;
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    uint32_t high0 = __umulhi(c0, 0xd2511f53u), low0 = c0 * 0xd2511f53u;
    uint32_t high1 = __umulhi(c2, 0xcd9e8d57u), low1 = c2 * 0xcd9e8d57u;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {{c0, c1, c2, c3}};
}

__device__ inline bool better(double score, int32_t index, const Draw& than) {
  return score > than.score || (score == than.score && index < than.index);
}

__device__ inline Draw warp_best(Draw best) {
#pragma unroll
  for (int apart = 16; apart; apart >>= 1) {
    Draw other = {__shfl_xor_sync(kWarp, best.score, apart), __shfl_xor_sync(kWarp, best.index, apart),
                  __shfl_xor_sync(kWarp, best.logit, apart)};
    if (better(other.score, other.index, best)) best = other;
  }
  return best;
}

// The uniform of a word lies in (0, 1).
__device__ inline float uniform(uint32_t word) {
  float x = __fadd_rn(__fmul_rn(__uint2float_rn(word), 0x1p-32f), 0x1p-33f);
  return fminf(x, 1.0f - 0x1p-24f);
}

// -log(-log1p(-x)) <= -log(x): one quick logarithm bounds the noise. The best bound of each lane is scored in fp32, and
// only candidates whose bound reaches the best of these, less a margin wider than a tie, pay for two in fp64.
__global__ void __launch_bounds__(kWarps * 32)
    draw_kernel(Block block, const float* temperature, const int64_t* key, const int64_t* position, Draw* draws) {
  int lane = threadIdx.x & 31;
  int64_t row = blockIdx.x, slab = int64_t(blockIdx.y) * kWarps + (threadIdx.x >> 5), first = slab * kSlab;
  if (first >= block.columns) return;
  int count = int(min(kSlab, block.columns - first));
  const float* logits = block.logits + row * block.pitch + first;
  float scale = block.scale[row], bounds[32], top = -INFINITY, top_x = 0.5f, top_logit = 0.0f;
  bool greedy = temperature[row] == 0.0f;
  uint64_t own_key = uint64_t(key[row]), own_position = uint64_t(position[row]);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    int at = (i * 32 + lane) * 4;
    Counter counter = philox(uint32_t(block.start + first + at) / 4, own_position, own_key);
    float four[4] = {};
    if (at + 4 <= count) {
      float4 loaded = *reinterpret_cast<const float4*>(logits + at);
      four[0] = loaded.x, four[1] = loaded.y, four[2] = loaded.z, four[3] = loaded.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (at + j < count) four[j] = logits[at + j];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float logit = __fmul_rn(four[j], scale), x = uniform(counter.words[j]);
      float bound = greedy ? logit : fmaf(__log2f(x), -0.693147181f, logit);
      bounds[i * 4 + j] = at + j < count ? bound : -INFINITY;
      if (bounds[i * 4 + j] > top) top = bounds[i * 4 + j], top_x = x, top_logit = logit;
    }
  }
  float guess = top_logit - logf(-log1pf(-top_x));
  float threshold = greedy || top == -INFINITY ? top : guess - 1e-4f - 1e-6f * fabsf(guess);
  threshold = warp_max(threshold);
  unsigned candidates = 0;
#pragma unroll
  for (int n = 0; n < 32; ++n)
    if (bounds[n] >= threshold) candidates |= 1u << n;
  Draw best = {-INFINITY, 0, NAN};
  for (; candidates; candidates &= candidates - 1) {
    int n = __ffs(candidates) - 1, at = (n / 4 * 32 + lane) * 4 + n % 4;
    if (at >= count) continue;
    int32_t index = int32_t(block.start + first) + at;
    float logit = __fmul_rn(logits[at], scale);
    double score = logit;
    if (!greedy) {
      Counter counter = philox(uint32_t(index) / 4, own_position, own_key);
      uint32_t word = n % 2 ? (n % 4 == 3 ? counter.words[3] : counter.words[1])
                            : (n % 4 == 2 ? counter.words[2] : counter.words[0]);
      score -= log(-log1p(-double(uniform(word))));
    }
    if (better(score, index, best)) best = {score, index, logit};
  }
  best = warp_best(best);
  if (lane == 0) draws[row * block.slabs + block.start / kSlab + slab] = best;
}

__global__ void __launch_bounds__(kWarps * 32)
    finish_draw_kernel(const Draw* draws, int64_t rows, int64_t slabs, int64_t* token, float* chosen) {
  int lane = threadIdx.x & 31;
  int64_t row = int64_t(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  if (row >= rows) return;
  Draw best = {-INFINITY, 0, NAN};
  for (int64_t s = lane; s < slabs; s += 32) {
    Draw other = draws[row * slabs + s];
    if (better(other.score, other.index, best)) best = other;
  }
  best = warp_best(best);
  if (lane) return;
  token[row] = best.index;
  chosen[row] = best.logit;
}

__global__ void scales_kernel(const float* temperature, int64_t rows, float* scale) {
  int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  float heat = temperature[row];
  scale[row] = heat == 0.0f ? 1.0f : heat < 0.0f ? NAN : __fdiv_rn(1.0f, heat);
}

}  // namespace

Failure draw(const Block& block, const float* temperature, const int64_t* key, const int64_t* position, Draw* draws,
             Stream stream) {
  if (!block.rows || !block.columns) return nullptr;
  dim3 grid(unsigned(block.rows), parts(slabs_of(block.columns), kWarps));
  draw_kernel<<<grid, kWarps * 32, 0, stream_of(stream)>>>(block, temperature, key, position, draws);
  return failure();
}

Failure finish_draw(const Draw* draws, int64_t rows, int64_t slabs, int64_t* token, float* chosen, Stream stream) {
  if (!rows) return nullptr;
  finish_draw_kernel<<<parts(rows, kWarps), kWarps * 32, 0, stream_of(stream)>>>(draws, rows, slabs, token, chosen);
  return failure();
}

Failure scales(const float* temperature, int64_t rows, float* scale, Stream stream) {
  if (!rows) return nullptr;
  scales_kernel<<<parts(rows, 256), 256, 0, stream_of(stream)>>>(temperature, rows, scale);
  return failure();
}

}  // namespace cuda
}  // namespace perilune
