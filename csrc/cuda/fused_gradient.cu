#include "fused.h"
#include "gradient.cuh"
#include "maps.cuh"

namespace perilune {
namespace cuda {
namespace {

// Rows are vocabulary entries, columns tokens.
struct Turn {
  const float4* slopes;
  __nv_bfloat16* out;
  int64_t pitch;
  int rows;

  __device__ static void meet(int warpgroup) { asm volatile("bar.sync %0, 128;" ::"r"(1 + warpgroup) : "memory"); }

  // Slopes are far away: they are on their way while the product is made.
  __device__ static float4* near(int warpgroup) {
    __shared__ float4 kept[2][kTileColumns];
    return kept[warpgroup];
  }

  __device__ void prepare(int warpgroup, int column) const {
    float4* to = near(warpgroup);
    int thread = threadIdx.x % 128;
    meet(warpgroup);
#pragma unroll
    for (int n = thread; n < thread + kTileColumns; n += 128)
      asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(to + n)),
                   "l"(slopes + column + n) : "memory");
  }

  __device__ static float at(float4 slope, float logit) {
    return slope_at({slope.x, slope.y, slope.z, slope.w}, logit);
  }

  __device__ static unsigned packed(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<unsigned&>(both);
  }

  // Two neighbours exchange what they have of two groups of eight tokens, so that each writes four in one piece.
  __device__ void operator()(const float (&sums)[128], int row, int column) const {
    int warpgroup = threadIdx.x / 128 - 1;
    bool odd = threadIdx.x % 2;
    const float4* kept = near(warpgroup) + column % kTileColumns;
    asm volatile("cp.async.wait_all;" ::: "memory");
    meet(warpgroup);
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      float4 slopes[2][2];
#pragma unroll
      for (int n = 0; n < 2; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) slopes[n][j] = kept[8 * (i + n) + j];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        unsigned pair[2];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float* own = sums + 4 * (i + n) + 2 * r;
          pair[n] = packed(at(slopes[n][0], own[0]), at(slopes[n][1], own[1]));
        }
        unsigned other = __shfl_xor_sync(kWarp, odd ? pair[0] : pair[1], 1);
        int to = odd ? column - 2 + 8 * (i + 1) : column + 8 * i;
        uint2 four = odd ? make_uint2(other, pair[1]) : make_uint2(pair[0], other);
        if (row + 8 * r < rows && to < pitch) *reinterpret_cast<uint2*>(out + (row + 8 * r) * pitch + to) = four;
      }
    }
  }
};

// What the product needs of each token; 0 past the last one.
__global__ void slopes_kernel(const float* statistics, int64_t tokens, int64_t filled, float4* slopes) {
  int64_t token = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (token >= filled) return;
  Slope slope = {};
  if (token < tokens) slope = slope_of(statistics + token, tokens);
  slopes[token] = make_float4(slope.scale, slope.lse, slope.constant, slope.factor);
}

// The forward has the target's log-probability: its gradient needs no logit.
__global__ void targets_kernel(const int64_t* target, const float* statistics, int64_t tokens, int64_t rows,
                               int64_t start, __nv_bfloat16* out, int64_t pitch) {
  int64_t token = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  int64_t hit = target[token] - start;
  if (hit < 0 || hit >= rows) return;
  out[hit * pitch + token] = narrow<__nv_bfloat16>(on_target(statistics + token, tokens));
}

}  // namespace

Failure fused_gradient(const FusedHead& head, const FusedGradient& args, Stream stream) {
  if (!head.tokens || !head.vocabulary) return nullptr;
  CUtensorMap hidden, weight;
  if (Failure failed = describe(hidden, head.hidden, head.tokens, head.width)) return failed;
  if (Failure failed = describe(weight, head.weight, head.vocabulary, head.width)) return failed;
  auto* slopes = reinterpret_cast<float4*>(args.workspace);
  auto* out = static_cast<__nv_bfloat16*>(args.out);
  int64_t filled = fused_workspace(head.tokens) / 4;
  slopes_kernel<<<parts(filled, 128), 128, 0, stream_of(stream)>>>(args.statistics, head.tokens, filled, slopes);
  Plan plan = {int(parts(head.width, kTileDepth)), int(parts(head.vocabulary, kTileRows)),
               int(parts(head.tokens, kTileColumns)), 0};
  Turn turn = {slopes, out, args.pitch, int(head.vocabulary)};
  Failure failed = launch_product<2>(weight, hidden, plan, turn, stream);
  if (failed) return failed;
  targets_kernel<<<parts(head.tokens, 128), 128, 0, stream_of(stream)>>>(args.target, args.statistics, head.tokens,
                                                                         head.vocabulary, args.start, out, args.pitch);
  return failure();
}

}  // namespace cuda
}  // namespace perilune
