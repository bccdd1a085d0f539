#include "spans.cuh"

namespace perilune {
namespace cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32, kKeys = 16, kHeads = 16, kPad = 8;

// Steps of a warp that are under way, bytes of the keys or the values of one, bytes of all steps of a block.
template <int kWidth>
constexpr int kStages = kWidth > 64 ? 2 : 3;
template <int kWidth>
constexpr int kStepBytes = kKeys * kWidth * 2;
template <int kWidth>
constexpr int kBlockBytes = kWarps * kStages<kWidth> * 2 * kStepBytes<kWidth>;

// Where eight values lie: rows of eight such chunks would meet in the same banks if they were not shuffled.
template <int kWidth>
__device__ inline int chunk_offset(int key, int chunk) {
  return key * kWidth * 2 + (chunk ^ (key & 7)) * 16;
}

// Sixteen keys, or values, of a cache row by row; what lies outside of the span or of the head becomes 0.
template <int kWidth, bool whole>
__device__ inline void fetch(char* to, const __nv_bfloat16* from, int64_t stride, int real, int size, int lane) {
  constexpr int kChunks = kWidth / 8;
#pragma unroll
  for (int i = 0; i < kKeys * kChunks / 32; ++i) {
    int key = (i * 32 + lane) / kChunks, chunk = (i * 32 + lane) % kChunks;
    bool inside = key < real && chunk * 8 < size;
    const __nv_bfloat16* source = inside ? from + key * stride + chunk * 8 : from;
    char* target = to + chunk_offset<kWidth>(key, chunk);
    if (whole) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
                   "r"(inside ? 16 : 0));
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        reinterpret_cast<__nv_bfloat16*>(target)[j] = inside ? source[j] : __nv_bfloat16(__ushort_as_bfloat16(0));
    }
  }
}

__device__ inline void load_fragments(unsigned (&to)[4], const char* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(from)));
}

__device__ inline void load_turned(unsigned (&to)[4], const char* from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(shared_address(from)));
}

// sums [16, 8] += left [16, 16] @ right [16, 8].
__device__ inline void add_product(float (&sums)[4], const unsigned (&left)[4], unsigned right0, unsigned right1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

__device__ inline unsigned packed(float low, float high) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(low)) | unsigned(__bfloat16_as_ushort(__float2bfloat16_rn(high)))
                                                              << 16;
}

// One block: one token, one span, up to sixteen query heads of one shared head, which meet each key once. A warp
// takes every fourth step of sixteen keys and keeps the next ones under way; the four parts are merged in order.
template <int kWidth, bool whole>
__global__ void __launch_bounds__(kThreads, kWidth > 64 ? (whole ? 3 : 2) : 4)
    attend_kernel(SlotAttention args, int64_t slots, float* workspace) {
  extern __shared__ __align__(128) char bytes[];
  __shared__ float maxima[kWarps][kHeads], totals[kWarps][kHeads];
  constexpr int kBytes = kStepBytes<kWidth>, kAhead = kStages<kWidth>;
  let_follow();
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, size = int(args.head_size), group = lane / 4;
  int64_t token = blockIdx.x / args.shared_heads, shared = blockIdx.x % args.shared_heads, span = blockIdx.y;
  int64_t per = args.heads / args.shared_heads, offset = int64_t(blockIdx.z) * kHeads, head = shared * per + offset;
  int heads = int(min(int64_t(kHeads), per - offset));
  int64_t position = args.position[token], slot = args.slot[token], first = span * kSpan;
  if (first > position || position >= args.capacity || slot < 0 || slot >= slots) return;
  int keys_here = int(min(kSpan, position + 1 - first));

  int64_t stride = args.shared_heads * args.head_size;
  int64_t base = (slot * args.capacity + first) * stride + shared * args.head_size;
  const auto* keys = static_cast<const __nv_bfloat16*>(args.keys) + base;
  const auto* values = static_cast<const __nv_bfloat16*>(args.values) + base;
  char* own = bytes + warp * kAhead * 2 * kBytes;
  int steps = max(0, (keys_here - warp * kKeys + kWarps * kKeys - 1) / (kWarps * kKeys));
  auto start = [&](int step) {
    int key = (step * kWarps + warp) * kKeys;
    char* to = own + (step % kAhead) * 2 * kBytes;
    if (step < steps) {
      fetch<kWidth, whole>(to, keys + key * stride, stride, keys_here - key, size, lane);
      fetch<kWidth, whole>(to + kBytes, values + key * stride, stride, keys_here - key, size, lane);
    }
    asm volatile("cp.async.commit_group;");
  };
#pragma unroll
  for (int step = 0; step < kAhead; ++step) start(step);

  unsigned query[kWidth / 16][4];
  const auto* queries = reinterpret_cast<const uint16_t*>(args.query) + (token * args.heads + head) * size;
#pragma unroll
  for (int k = 0; k < kWidth / 16; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int row = group + j % 2 * 8, at = k * 16 + lane % 4 * 2 + j / 2 * 8;
      bool real = row < heads && at < size;
      query[k][j] = real ? queries[row * size + at] | unsigned(queries[row * size + at + 1]) << 16 : 0u;
    }

  float factor = args.scale * kLog2e, maximum[2] = {kLowest, kLowest}, total[2] = {0.0f, 0.0f};
  float sums[kWidth / 8][4];
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[n][j] = 0.0f;

  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kAhead - 1) : "memory");
    __syncwarp();
    const char* from = own + (step % kAhead) * 2 * kBytes;
    int left = keys_here - (step * kWarps + warp) * kKeys;
    float scores[2][4] = {};
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      unsigned right[4];
      load_fragments(right, from + chunk_offset<kWidth>(lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
      add_product(scores[0], query[k], right[0], right[1]);
      add_product(scores[1], query[k], right[2], right[3]);
    }
    float most[2] = {kLowest, kLowest}, keep[2];
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        bool real = n * 8 + lane % 4 * 2 + j % 2 < left;
        scores[n][j] = real ? scores[n][j] * factor : kLowest;
        most[j / 2] = fmaxf(most[j / 2], scores[n][j]);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float now = fmaxf(maximum[r], quad_max(most[r]));
      keep[r] = exp2f(maximum[r] - now);
      maximum[r] = now;
      total[r] *= keep[r];
    }
    // Weights keep sixteen bits: what bfloat16 leaves of them is a second product.
    unsigned high[4], low[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      int n = j / 2, r = j % 2;
      float a = exp2f(scores[n][r * 2] - maximum[r]), b = exp2f(scores[n][r * 2 + 1] - maximum[r]);
      total[r] += a + b;
      high[j] = packed(a, b);
      low[j] = packed(a - __uint_as_float(high[j] << 16), b - __uint_as_float(high[j] & 0xffff0000u));
    }
#pragma unroll
    for (int n = 0; n < kWidth / 16; ++n) {
      unsigned right[4];
      load_turned(right, from + kBytes + chunk_offset<kWidth>(lane % 16, n * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float(&sum)[4] = sums[n * 2 + j];
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] *= keep[i / 2];
        add_product(sum, high, right[j * 2], right[j * 2 + 1]);
        add_product(sum, low, right[j * 2], right[j * 2 + 1]);
      }
    }
    __syncwarp();
    start(step + kAhead);
  }

  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  constexpr int kPitch = kWidth + kPad;
  float* parts = reinterpret_cast<float*>(bytes);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int row = group + r * 8;
    float all = quad_sum(total[r]);
    if (lane % 4 == 0) maxima[warp][row] = maximum[r], totals[warp][row] = all;
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
      float* to = parts + (warp * kHeads + row) * kPitch + n * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(to) = make_float2(sums[n][r * 2], sums[n][r * 2 + 1]);
    }
  }
  __syncthreads();
  for (int h = warp; h < heads; h += kWarps) {
    float* to = place_of(workspace, args, token, head + h, span);
    float most = kLowest, weight[kWarps], all = 0.0f;
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, maxima[w][h]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      weight[w] = exp2f(maxima[w][h] - most);
      all = fmaf(totals[w][h], weight[w], all);
    }
    if (lane == 0) to[0] = most, to[1] = all;
    for (int i = lane; i < size; i += 32) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum = fmaf(parts[(w * kHeads + h) * kPitch + i], weight[w], sum);
      to[2 + i] = sum;
    }
  }
}

template <int kWidth>
void launch(const SlotAttention& args, int64_t slots, float* workspace, Stream stream) {
  static_assert(kBlockBytes<kWidth> >= kWarps * kHeads * (kWidth + kPad) * 4, "the parts take the place of the keys");
  int64_t pitch = args.head_size * 2;
  bool whole = aligned(args.keys, pitch) && aligned(args.values, pitch);
  auto kernel = whole ? attend_kernel<kWidth, true> : attend_kernel<kWidth, false>;
  int64_t group = args.heads / args.shared_heads;
  dim3 grid(unsigned(args.tokens * args.shared_heads), unsigned(spans_of(args.capacity)), parts(group, kHeads));
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBlockBytes<kWidth>);
  kernel<<<grid, kThreads, kBlockBytes<kWidth>, stream_of(stream)>>>(args, slots, workspace);
}

}  // namespace

void attend_by_products(const SlotAttention& args, int64_t slots, float* workspace, Stream stream) {
  if (args.head_size <= 64) launch<64>(args, slots, workspace, stream);
  else launch<128>(args, slots, workspace, stream);
}

}  // namespace cuda
}  // namespace perilune
