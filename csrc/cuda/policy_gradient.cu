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
                                                        T* loss, T* drift) {
  __shared__ bool last;
  int64_t s = blockIdx.x;
  if (s < row.count) {
    Span span = span_of(row, s);
    double sums[2] = {0.0, 0.0};
#pragma unroll 4
    for (int64_t t = span.start + threadIdx.x; t < span.start + span.tokens; t += kThreads) {
      double value = terms.logprob[t];
      sums[0] += value * double(terms.coefficient[t]);
      if (terms.reference) sums[1] += value - double(terms.reference[t]);
    }
    block_sum(sums);
    if (threadIdx.x == 0) {
      double scaled = sums[1] / terms.length, unknown = not_a_number();
      drift[s] = T(span.fits ? sums[1] : unknown);
      losses[s] = span.fits ? terms.tau / 2 * scaled * scaled - sums[0] : unknown;
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
__global__ void __launch_bounds__(kThreads) gradient_kernel(Row row, Terms<T> terms, const T* drift, const T* g_loss,
                                                            T* gradient) {
  bool fits = row_fits(row);
  int64_t token = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= row.tokens) return;
  if (!fits) {
    gradient[token] = T(not_a_number());
    return;
  }
  int64_t s = segment_of(row, token);
  double above = *g_loss;
  T pull = T(above * (terms.tau / (terms.length * terms.length)) * double(drift[s]));
  T own = pull - T(above) * terms.coefficient[token];
  gradient[token] = terms.weight ? terms.weight[token] * own : own;
}

template <typename T>
Terms<T> terms_of(const Loss& args) {
  return {static_cast<const T*>(args.logprob), static_cast<const T*>(args.coefficient),
          static_cast<const T*>(args.reference), static_cast<const T*>(args.weight), args.tau, args.length};
}

template <typename T>
Failure forward(const Row& row, const Loss& args, double* losses, void* loss, void* drift, Stream stream) {
  unsigned* ended = reinterpret_cast<unsigned*>(losses + row.count);
  cudaError_t error = cudaMemsetAsync(ended, 0, sizeof(unsigned), stream_of(stream));
  if (error != cudaSuccess) return cudaGetErrorString(error);
  unsigned blocks = row.count ? unsigned(row.count) : 1u;
  loss_kernel<<<blocks, kThreads, 0, stream_of(stream)>>>(row, terms_of<T>(args), losses, ended,
                                                          static_cast<T*>(loss), static_cast<T*>(drift));
  return failure();
}

template <typename T>
Failure backward(const Row& row, const Loss& args, const void* drift, const void* g_loss, void* gradient,
                 Stream stream) {
  gradient_kernel<<<blocks_for(row.tokens), kThreads, 0, stream_of(stream)>>>(
      row, terms_of<T>(args), static_cast<const T*>(drift), static_cast<const T*>(g_loss),
      static_cast<T*>(gradient));
  return failure();
}

}  // namespace

Failure policy_gradient(const Row& row, const Loss& args, double* losses, void* loss, void* drift,
                        Stream stream) {
  return (args.real == Real::float32 ? forward<float> : forward<double>)(row, args, losses, loss, drift, stream);
}

Failure policy_gradient_backward(const Row& row, const Loss& args, const void* drift, const void* g_loss,
                                 void* gradient, Stream stream) {
  if (row.tokens == 0) return nullptr;
  return (args.real == Real::float32 ? backward<float> : backward<double>)(row, args, drift, g_loss, gradient, stream);
}

}  // namespace cuda
}  // namespace perilune
