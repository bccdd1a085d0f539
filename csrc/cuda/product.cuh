// left [rows, depth] @ right [columns, depth].T in bfloat16, whose fp32 sums are visited in registers and never meet
// memory of themselves.
//
// A block multiplies tiles of 128 rows by 256 columns: one thread copies tiles ahead into a ring, two warpgroups
// multiply 64 rows each, and as they drift apart one multiplies while the other visits. The sums of an element are the
// same operations in the same order wherever it lies, however many rows and columns there are.
#pragma once
#include "hopper.cuh"

namespace perilune {
namespace cuda {

constexpr int kTileRows = 128, kTileColumns = 256, kTileDepth = 64, kRing = 4, kTogether = 16;
constexpr unsigned kHalfBytes = 128 * kTileDepth * 2, kRingBytes = 3 * kHalfBytes;
constexpr int kProductThreads = 384, kProductShared = kRing * kRingBytes + 1024;

struct Plan {
  int steps, row_tiles, column_tiles, first_column;  // the first tile of columns that is multiplied
};

struct Ring {
  int stage = 0;
  unsigned parity = 0;
  __device__ void next() {
    if (++stage == kRing) stage = 0, parity ^= 1;
  }
};

struct Tile {
  int row, column;
};

// Tiles in the order in which blocks take them: some tiles of rows meet all columns before the next ones do, so that
// both sides stay in the cache.
template <int kCluster>
__device__ inline Tile tile_of(const Plan& plan, int which, int rank) {
  constexpr int kGroup = kTogether / kCluster;
  int clusters = (plan.row_tiles + kCluster - 1) / kCluster, per_group = kGroup * plan.column_tiles;
  int first = which / per_group * kGroup, here = min(kGroup, clusters - first), at = which % per_group;
  return {(first + at % here) * kCluster + rank, plan.first_column + at / here};
}

// visit.prepare(warpgroup, first column) before the product of a tile, visit(sums, row, column) after it: sums[4 * i +
// 2 * r + j] belongs to row + 8 * r and column + 8 * i + j.
template <int kCluster, typename Visit>
__global__ void __launch_bounds__(kProductThreads, 1)
    product_kernel(const __grid_constant__ CUtensorMap left, const __grid_constant__ CUtensorMap right, Plan plan,
                   Visit visit) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ char bytes[];
  __shared__ uint64_t barriers[2 * kRing];  // also tells fused_runs that there is a body
  unsigned tiles = (shared_address(bytes) + 1023) & ~1023u;
  unsigned full = shared_address(barriers), empty = full + 8 * kRing, rank = blockIdx.x % kCluster;
  int count = (plan.row_tiles + kCluster - 1) / kCluster * plan.column_tiles;
  int begin = int(blockIdx.x) / kCluster, apart = int(gridDim.x) / kCluster;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kRing; ++stage) {
      barrier_init(full + 8 * stage, 1);
      barrier_init(empty + 8 * stage, 8 * kCluster);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (kCluster > 1) cluster_sync();
  else __syncthreads();

  Ring ring;
  if (threadIdx.x < 128) {
    if (threadIdx.x == 0) {
      for (int which = begin; which < count; which += apart) {
        Tile tile = tile_of<kCluster>(plan, which, rank);
        for (int step = 0; step < plan.steps; ++step, ring.next()) {
          unsigned barrier = full + 8 * ring.stage, to = tiles + ring.stage * kRingBytes;
          int depth = step * kTileDepth, column = tile.column * kTileColumns;
          barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
          barrier_expect(barrier, kRingBytes);
          fetch_tile(to, &left, depth, tile.row * kTileRows, barrier, 0);
          if (kCluster > 1) {
            fetch_tile(to + (1 + rank) * kHalfBytes, &right, depth, column + int(rank) * 128, barrier, 3);
          } else {
            fetch_tile(to + kHalfBytes, &right, depth, column, barrier, 0);
            fetch_tile(to + 2 * kHalfBytes, &right, depth, column + 128, barrier, 0);
          }
        }
      }
    }
    __syncwarp();
  } else {
    int lane = threadIdx.x % 32, second = threadIdx.x >= 256;
    float sums[128];
    for (int which = begin; which < count; which += apart) {
      visit.prepare(second, tile_of<kCluster>(plan, which, rank).column * kTileColumns);
      int before = 0;
      for (int step = 0; step < plan.steps; ++step, ring.next()) {
        barrier_wait(full + 8 * ring.stage, ring.parity);
        unsigned from = tiles + ring.stage * kRingBytes;
        uint64_t own = tile_descriptor(from + second * (kHalfBytes / 2)), other = tile_descriptor(from + kHalfBytes);
        products_begin();
#pragma unroll
        for (int i = 0; i < kTileDepth / 16; ++i) add_products(sums, own + 2 * i, other + 2 * i, step | i);
        products_commit();
        if (step) {
          products_wait<1>();
          if (lane < kCluster) barrier_arrive(empty + 8 * before, lane);
        }
        before = ring.stage;
      }
      products_wait<0>();
      settle(sums);
      if (lane < kCluster) barrier_arrive(empty + 8 * before, lane);
      Tile tile = tile_of<kCluster>(plan, which, rank);
      int row = tile.row * kTileRows + second * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
      visit(sums, row, tile.column * kTileColumns + lane % 4 * 2);
    }
  }
  // A block may not leave while another still writes into it or arrives at its barriers.
  if (kCluster > 1) cluster_sync();
#endif
}

}  // namespace cuda
}  // namespace perilune
