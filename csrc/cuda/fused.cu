#include "fused.h"

#include "maps.cuh"

namespace perilune {
namespace cuda {
namespace {

// Rows are tokens, columns vocabulary entries. Four lanes share a row of a tile: one slab.
template <bool keeps>
struct Reduce {
  FusedStats args;
  int tokens, vocabulary, all_slabs;

  __device__ void prepare(int, int) const {}

  // The target's place from this thread's first column on; -1 if another thread has it.
  __device__ int hit_of(int row, int column) const {
    if (!args.target || row >= tokens) return -1;
    int64_t hit = args.target[row] - column;
    return hit >= 0 && hit < kTileColumns && hit % 8 < 2 && hit + column < vocabulary ? int(hit) : -1;
  }

  // How many entries follow this thread's first column. Opaque, so that no 64 answers are kept for the next loop.
  __device__ int left_of(int column) const {
    int left = vocabulary - column;
    asm volatile("" : "+r"(left));
    return left;
  }

  template <bool whole>
  __device__ void row_of(const float (&sums)[128], int r, float scale, int row, int column) const {
    float most = kLowest, sum[2] = {0.0f, 0.0f}, weighted[2] = {0.0f, 0.0f};
    int left = left_of(column);
#pragma unroll
    for (int i = 0; i < 32; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        if (whole || 8 * i + j < left) most = fmaxf(most, sums[4 * i + 2 * r + j]);
    float maximum = __fmul_rn(quad_max(most), scale);
    left = left_of(column);
#pragma unroll
    for (int i = 0; i < 32; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float below = fmaf(sums[4 * i + 2 * r + j], scale, -maximum);
        float e = whole || 8 * i + j < left ? __expf(below) : 0.0f;
        sum[j] = __fadd_rn(sum[j], e);
        weighted[j] = fmaf(e, below, weighted[j]);
      }
    float all = quad_sum(__fadd_rn(sum[0], sum[1])), all_weighted = quad_sum(__fadd_rn(weighted[0], weighted[1]));
    if (threadIdx.x % 4 == 0 && row < tokens)
      args.partials[int64_t(row) * all_slabs + column / int(kFusedSlab)] = {maximum, all, all_weighted, 0.0f};
  }

  __device__ void operator()(const float (&sums)[128], int row, int column) const {
    bool whole = (column / kTileColumns + 1) * kTileColumns <= vocabulary;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      int here = row + 8 * r, hit = hit_of(here, column);
      float scale = here < tokens ? fitting(args.scale[here]) : 0.0f;
      if (whole) row_of<true>(sums, r, scale, here, column);
      else row_of<false>(sums, r, scale, here, column);
      if (hit >= 0) {
        float logit = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; ++i)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (hit == 8 * i + j) logit = sums[4 * i + 2 * r + j];
        args.chosen[here] = __fmul_rn(logit, scale);
      }
      if (keeps && here < tokens) {
        float* to = args.logits + here * args.pitch + (column - int(args.first * kFusedSlab));
#pragma unroll
        for (int i = 0; i < 32; ++i)
          if (whole || column + 8 * i < vocabulary)
            *reinterpret_cast<float2*>(to + 8 * i) = make_float2(sums[4 * i + 2 * r], sums[4 * i + 2 * r + 1]);
      }
    }
  }
};

template <int kCluster>
Failure stats_by(const FusedHead& head, const FusedStats& args, const CUtensorMap& hidden, const CUtensorMap& weight,
                 Stream stream) {
  Plan plan = {int(parts(head.width, kTileDepth)), int(parts(head.tokens, kTileRows)), int(args.slabs),
               int(args.first)};
  int tokens = int(head.tokens), vocabulary = int(head.vocabulary), slabs = int(fused_slabs_of(head.vocabulary));
  if (args.logits)
    return launch_product<kCluster>(hidden, weight, plan, Reduce<true>{args, tokens, vocabulary, slabs}, stream);
  return launch_product<kCluster>(hidden, weight, plan, Reduce<false>{args, tokens, vocabulary, slabs}, stream);
}

}  // namespace

bool fused_runs() {
  cudaFuncAttributes found = {};
  // Code for other devices has no body, and so no barriers in shared memory.
  if (cudaFuncGetAttributes(&found, product_kernel<1, Reduce<false>>) == cudaSuccess) return found.sharedSizeBytes > 0;
  cudaGetLastError();
  return false;
}

Failure fused_stats(const FusedHead& head, const FusedStats& args, Stream stream) {
  if (!head.tokens || !args.slabs) return nullptr;
  CUtensorMap hidden, weight;
  if (Failure failed = describe(hidden, head.hidden, head.tokens, head.width)) return failed;
  if (Failure failed = describe(weight, head.weight, head.vocabulary, head.width)) return failed;
  return head.tokens > kTileRows ? stats_by<2>(head, args, hidden, weight, stream)
                                 : stats_by<1>(head, args, hidden, weight, stream);
}

}  // namespace cuda
}  // namespace perilune
