// What the kernels share: eight values at a time, rounding as torch rounds, sums over a warp.
#pragma once
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "launch.h"

namespace perilune {
namespace cuda {

constexpr float kLowest = -1e30f;  // finite, so that differences are never NaN of themselves
constexpr unsigned kWarp = 0xffffffffu;

inline Failure failure() {
  cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream); }

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) { return x; }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// As if the value had been stored in T and read again.
template <typename T>
__device__ inline float rounded(float x) { return wide(narrow<T>(x)); }

__device__ inline void load_eight(const float* from, float (&to)[8]) {
  float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

__device__ inline void load_eight(const __nv_bfloat16* from, float (&to)[8]) {
  uint4 packed = *reinterpret_cast<const uint4*>(from);
  unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ inline void store_eight(float* to, const float (&from)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

__device__ inline void store_eight(__nv_bfloat16* to, const float (&from)[8]) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    unsigned low = __bfloat16_as_ushort(__float2bfloat16_rn(from[2 * i]));
    unsigned high = __bfloat16_as_ushort(__float2bfloat16_rn(from[2 * i + 1]));
    words[i] = low | high << 16;
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// `left` values at most, `fill` for the rest. Without `whole` the address need not be a multiple of 16 bytes.
template <bool whole, typename T>
__device__ inline void load_some(const T* from, int64_t left, float fill, float (&to)[8]) {
  if (whole && left >= 8) {
    load_eight(from, to);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = i < left ? wide(from[i]) : fill;
}

template <bool whole, typename T>
__device__ inline void store_some(T* to, int64_t left, const float (&from)[8]) {
  if (whole && left >= 8) {
    store_eight(to, from);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < left) to[i] = narrow<T>(from[i]);
}

// NaN for a factor that is no inverse temperature.
__device__ inline float fitting(float scale) { return scale >= 0.0f && scale < INFINITY ? scale : NAN; }

__device__ inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// The same value in every lane: the two sides of each exchange add the same two numbers.
template <typename T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int apart = 16; apart; apart >>= 1) value += __shfl_xor_sync(kWarp, value, apart);
  return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int apart = 16; apart; apart >>= 1) value = fmaxf(value, __shfl_xor_sync(kWarp, value, apart));
  return value;
}

__device__ inline double warp_max(double value) {
#pragma unroll
  for (int apart = 16; apart; apart >>= 1) value = fmax(value, __shfl_xor_sync(kWarp, value, apart));
  return value;
}

// Over the four lanes that share a row of a product.
__device__ inline float quad_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kWarp, value, 1));
  return fmaxf(value, __shfl_xor_sync(kWarp, value, 2));
}

__device__ inline float quad_sum(float value) {
  value += __shfl_xor_sync(kWarp, value, 1);
  return value + __shfl_xor_sync(kWarp, value, 2);
}

// From here on the next kernel of the stream may start, if it was launched to follow; it waits in follow().
__device__ inline void let_follow() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Until all that came before in the stream is done and seen.
__device__ inline void follow() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

inline bool aligned(const void* pointer, int64_t pitch_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && pitch_bytes % 16 == 0;
}

inline unsigned parts(int64_t whole, int64_t part) { return unsigned((whole + part - 1) / part); }

}  // namespace cuda
}  // namespace perilune
