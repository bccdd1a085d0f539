// From the host: descriptions of tensors for the copies of tiles, and the launch of a product.
#pragma once
#include <algorithm>

#include "product.cuh"

namespace perilune {
namespace cuda {

// A tensor [rows, depth] in tiles of 128 rows by 64 values; what lies outside of it is read as 0.
inline Failure describe(CUtensorMap& map, const void* tensor, int64_t rows, int64_t depth) {
  typedef decltype(&cuTensorMapEncodeTiled) Encode;
  static Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  if (!encode) return "the driver does not describe tensors (cuTensorMapEncodeTiled)";
  cuuint64_t sizes[2] = {cuuint64_t(depth), cuuint64_t(rows)}, pitches[1] = {cuuint64_t(depth) * 2};
  cuuint32_t box[2] = {kTileDepth, 128}, apart[2] = {1, 1};
  CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(tensor), sizes, pitches, box,
                           apart, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver does not describe a tensor of this shape or address";
}

template <int kCluster, typename Visit>
Failure launch_product(const CUtensorMap& left, const CUtensorMap& right, const Plan& plan, const Visit& visit,
                       Stream stream) {
  auto kernel = product_kernel<kCluster, Visit>;
  int device = 0, processors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kProductShared);
  int clusters = (plan.row_tiles + kCluster - 1) / kCluster * plan.column_tiles;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(std::min(clusters, processors / kCluster) * kCluster));
  config.blockDim = dim3(kProductThreads);
  config.dynamicSmemBytes = kProductShared;
  config.stream = stream_of(stream);
  cudaLaunchAttribute shape;
  shape.id = cudaLaunchAttributeClusterDimension;
  shape.val.clusterDim.x = kCluster;
  shape.val.clusterDim.y = shape.val.clusterDim.z = 1;
  config.attrs = &shape;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, left, right, plan, visit);
  return failure();
}

}  // namespace cuda
}  // namespace perilune
