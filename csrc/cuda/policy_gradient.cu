// Forward: one block to a segment, and the block that ends last adds the segments up in their order. Backward: one
// thread to a token.
#include "segments.cuh"

namespace perilune {
namespace cuda {
namespace {

template <typename T>
struct Terms {
  const T *logprob, *coefficient, *reference, *weight;
  double tau, length;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) loss_kernel(Row row, Terms<T> terms, double* losses, unsigned* ended,
                                                        T* loss, T* total, T* drift) {
  __shared__ bool last;
  int64_t s = blockIdx.x;
  if (s < row.count) {
    Span span = span_of(row, s);
    double sums[3] = {0.0, 0.0, 0.0};
#pragma unroll 4
    for (int64_t t = span.start + threadIdx.x; t < span.start + span.tokens; t += kThreads) {
      double value = terms.logprob[t];
      sums[0] += value;
      sums[1] += value * double(terms.coefficient[t]);
      if (terms.reference) sums[2] += value - double(terms.reference[t]);
    }
    block_sum(sums);
    if (threadIdx.x == 0) {
      double scaled = sums[2] / terms.length, unknown = not_a_number();
      total[s] = T(span.fits ? sums[0] : unknown);
      drift[s] = T(span.fits ? sums[2] : unknown);
      losses[s] = span.fits ? terms.tau / 2 * scaled * scaled - sums[1] : unknown;
    }
  }
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(ended, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  double sums[1] = {0.0};
  for (int64_t i = threadIdx.x; i < row.count; i += kThreads) sums[0] += __ldcg(losses + i);
  block_sum(sums);
  if (threadIdx.x == 0) *loss = T(row.count || row.tokens == 0 ? sums[0] : not_a_number());
}

template <typename T>
__device__ inline double value_at(const T* values, int64_t i) {
  return values ? double(values[i]) : 0.0;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(Row row, Terms<T> terms, const T* drift, const T* g_loss,
                                                            const T* g_total, const T* g_drift, T* gradient) {
  bool fits = row_fits(row);
  int64_t token = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= row.tokens) return;
  if (!fits) {
    gradient[token] = T(not_a_number());
    return;
  }
  int64_t s = segment_of(row, token);
  double above = value_at(g_loss, 0);
  T pull = T(above * (terms.tau / (terms.length * terms.length)) * double(drift[s]));
  T direct = T(value_at(g_total, s) + value_at(g_drift, s));
  T own = pull - T(above) * terms.coefficient[token];
  gradient[token] = (terms.weight ? terms.weight[token] * own : own) + direct;
}

template <typename T>
Terms<T> terms_of(const Loss& args) {
  return {static_cast<const T*>(args.logprob), static_cast<const T*>(args.coefficient),
          static_cast<const T*>(args.reference), static_cast<const T*>(args.weight), args.tau, args.length};
}

template <typename T>
Failure forward(const Row& row, const Loss& args, double* losses, void* loss, void* total, void* drift,
                Stream stream) {
  unsigned* ended = reinterpret_cast<unsigned*>(losses + row.count);
  cudaError_t error = cudaMemsetAsync(ended, 0, sizeof(unsigned), stream_of(stream));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  unsigned blocks = row.count ? unsigned(row.count) : 1u;
  loss_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(row, terms_of<T>(args), losses, ended,
                                                          static_cast<T*>(loss), static_cast<T*>(total),
                                                          static_cast<T*>(drift));
  return failure();
}

template <typename T>
Failure backward(const Row& row, const Loss& args, const void* drift, const PolicyGradientUpstream& upstream,
                 void* gradient, Stream stream) {
  gradient_kernel<<<blocks_for(row.tokens), kThreads, 0, stream_of(stream)>>>(
      row, terms_of<T>(args), static_cast<const T*>(drift), static_cast<const T*>(upstream.loss),
      static_cast<const T*>(upstream.total), static_cast<const T*>(upstream.drift), static_cast<T*>(gradient));
  return failure();
}

}  // namespace

Failure policy_gradient(const Row& row, const Loss& args, double* losses, void* loss, void* total, void* drift,
                        Stream stream) {
  return (args.real == Real::float32 ? forward<float> : forward<double>)(row, args, losses, loss, total, drift,
                                                                         stream);
}

Failure policy_gradient_backward(const Row& row, const Loss& args, const void* drift,
                                 const PolicyGradientUpstream& upstream, void* gradient, Stream stream) {
  if (row.tokens == 0) return nullptr;
  return (args.real == Real::float32 ? backward<float> : backward<double>)(row, args, drift, upstream, gradient,
                                                                           stream);
}

}  // namespace cuda
}  // namespace perilune
