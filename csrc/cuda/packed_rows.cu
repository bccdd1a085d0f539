// A block copies a stretch of tokens, as many bytes at once as the addresses allow.
#include "packed_rows.h"

#include <cstring>

#include "segments.cuh"

namespace perilune {
namespace cuda {
namespace {

// Places or tokens of one block: one for each row of its threads, and enough to be worth the look at the partition.
__host__ __device__ inline int64_t stretch_of(dim3 block) { return block.y > 32 ? block.y : 32; }

__global__ void __launch_bounds__(kThreads) layout_kernel(Row row, int64_t* positions, int64_t* segment) {
  bool fits = row_fits(row);
  int64_t token = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= row.tokens) return;
  int64_t s = fits ? segment_of(row, token) : -1;
  positions[token] = fits ? token - row.starts[s] : -1;
  segment[token] = s;
}

template <typename Word>
__device__ inline Word all_ones() {
  return Word(~Word(0));
}
template <>
__device__ inline uint4 all_ones<uint4>() {
  return make_uint4(~0u, ~0u, ~0u, ~0u);
}

// blockIdx.x: segment; blockIdx.y: a stretch of places of it. Threads: y along places, x along the words of a token.
template <typename Word>
__global__ void __launch_bounds__(kThreads) pad_kernel(Row row, const Word* packed, Word fill, Word* padded,
                                                       int64_t length, int64_t words) {
  bool whole = row_fits(row);
  int64_t start = row.starts[blockIdx.x], tokens = row.starts[blockIdx.x + 1] - start;
  bool fits = whole && tokens <= length;
  Word beyond = fits ? fill : all_ones<Word>();
  int64_t held = fits ? tokens : 0, stretch = stretch_of(blockDim);
  for (int64_t first = int64_t(blockIdx.y) * stretch; first < length; first += int64_t(gridDim.y) * stretch)
    for (int64_t place = first + threadIdx.y; place < first + stretch && place < length; place += blockDim.y) {
      const Word* from = packed + (start + place) * words;
      Word* to = padded + (blockIdx.x * length + place) * words;
      for (int64_t w = threadIdx.x; w < words; w += blockDim.x) to[w] = place < held ? from[w] : beyond;
    }
}

// blockIdx.x: a stretch of tokens. Threads as above.
template <typename Word>
__global__ void __launch_bounds__(kThreads) unpad_kernel(Row row, const Word* padded, Word* packed, int64_t length,
                                                         int64_t words) {
  bool fits = row_fits(row);
  int64_t stretch = stretch_of(blockDim), first = int64_t(blockIdx.x) * stretch;
  for (int64_t token = first + threadIdx.y; token < first + stretch && token < row.tokens; token += blockDim.y) {
    int64_t s = fits ? segment_of(row, token) : 0, place = fits ? token - row.starts[s] : length;
    const Word* from = padded + (s * length + place) * words;
    Word* to = packed + token * words;
    for (int64_t w = threadIdx.x; w < words; w += blockDim.x) to[w] = place < length ? from[w] : all_ones<Word>();
  }
}

// Threads along the words of a token, the others along tokens.
dim3 block_for(int64_t words) {
  unsigned wide = 1;
  while (wide < words && wide < kThreads) wide *= 2;
  return dim3(wide, kThreads / wide);
}

// The widest word that tokens and both addresses are multiples of.
int64_t word_bytes(int64_t token_bytes, const void* a, const void* b) {
  uintptr_t all = uintptr_t(token_bytes) | reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | 16;
  return int64_t(all & (~all + 1));
}

template <typename Word>
Failure pad_words(const Row& row, int64_t length, int64_t token_bytes, const void* packed, const char* fill,
                  void* padded, Stream stream) {
  Word word;
  std::memcpy(&word, fill, sizeof(Word));
  int64_t words = token_bytes / sizeof(Word);
  dim3 block = block_for(words);
  int64_t stretches = (length + stretch_of(block) - 1) / stretch_of(block);
  dim3 grid(unsigned(row.count), unsigned(stretches < 65535 ? stretches : 65535));
  pad_kernel<<<grid, block, 0, stream_of(stream)>>>(row, static_cast<const Word*>(packed), word,
                                                    static_cast<Word*>(padded), length, words);
  return failure();
}

template <typename Word>
Failure unpad_words(const Row& row, int64_t length, int64_t token_bytes, const void* padded, void* packed,
                    Stream stream) {
  int64_t words = token_bytes / sizeof(Word);
  dim3 block = block_for(words);
  unsigned grid = unsigned((row.tokens + stretch_of(block) - 1) / stretch_of(block));
  unpad_kernel<<<grid, block, 0, stream_of(stream)>>>(row, static_cast<const Word*>(padded),
                                                      static_cast<Word*>(packed), length, words);
  return failure();
}

}  // namespace

Failure row_layout(const Row& row, int64_t* positions, int64_t* segment, Stream stream) {
  if (row.tokens == 0) return nullptr;
  layout_kernel<<<blocks_for(row.tokens), kThreads, 0, stream_of(stream)>>>(row, positions, segment);
  return failure();
}

Failure pad(const Row& row, int64_t length, int64_t token_bytes, const void* packed, const void* fill,
            int64_t fill_bytes, void* padded, Stream stream) {
  if (row.count * length * token_bytes == 0) return nullptr;
  char repeated[16];
  for (int64_t i = 0; i < 16; i += fill_bytes) std::memcpy(repeated + i, fill, size_t(fill_bytes));
  int64_t bytes = word_bytes(token_bytes, packed, padded);
  auto run = bytes == 16  ? pad_words<uint4>
             : bytes == 8 ? pad_words<uint64_t>
             : bytes == 4 ? pad_words<uint32_t>
             : bytes == 2 ? pad_words<uint16_t>
                          : pad_words<uint8_t>;
  return run(row, length, token_bytes, packed, repeated, padded, stream);
}

Failure unpad(const Row& row, int64_t length, int64_t token_bytes, const void* padded, void* packed, Stream stream) {
  if (row.tokens * token_bytes == 0) return nullptr;
  int64_t bytes = word_bytes(token_bytes, padded, packed);
  auto run = bytes == 16  ? unpad_words<uint4>
             : bytes == 8 ? unpad_words<uint64_t>
             : bytes == 4 ? unpad_words<uint32_t>
             : bytes == 2 ? unpad_words<uint16_t>
                          : unpad_words<uint8_t>;
  return run(row, length, token_bytes, padded, packed, stream);
}

}  // namespace cuda
}  // namespace perilune
