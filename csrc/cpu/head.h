// The walk that scoring, drawing and gradients share: chunks of tokens, packed once; partitions of the
// vocabulary, each scanned by one thread.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "level.h"

namespace perilune {

// Bytes on a cache line, not initialised.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : data_(std::aligned_alloc(64, size_t((bytes + 127) / 64 * 64))) {
    if (!data_) throw std::bad_alloc();
  }
  void* get() const { return data_.get(); }
  template <typename T>
  T* as() const { return static_cast<T*>(data_.get()); }

 private:
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
};

constexpr int64_t kChunkTokens = 2048;  // bounds the state kept for each partition

inline int64_t tiles_of(int64_t tokens) { return (tokens + kTile - 1) / kTile; }
inline int64_t partitions_of(int64_t vocabulary) { return (vocabulary + kPartition - 1) / kPartition; }

// The packed tiles of all tokens of `head`.
Buffer pack_tokens(const Head& head, int threads);

// States [partitions, tiles] of `scan`.
void scan_vocabulary(const Scan& scan, TileState* states, int threads);

// Sums of one token over all partitions, merged in order.
struct Totals {
  double maximum, sum, weighted;
  double logprob(float logit) const;
  double entropy() const;
  double lse() const;
};
Totals merge(const TileState* states, int64_t partitions, int64_t tiles, int64_t token);

// `head` narrowed to some of its tokens.
Head slice(const Head& head, int64_t first_token, int64_t tokens);

}  // namespace perilune
