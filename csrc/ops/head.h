// What every op over an output head starts from: hidden states [T, D] and the head [V, D].
#pragma once
#include <cstdint>

namespace perilune {

enum class Dtype { bfloat16, float32 };

struct Head {
  const void* hidden;     // T rows of D values, `hidden_stride` values apart
  const void* weight;     // V rows of D values, contiguous
  int64_t hidden_stride;
  int64_t tokens;
  int64_t width;
  int64_t vocabulary;
  Dtype dtype;
  const int64_t* rows = nullptr;  // [T]: token t is row rows[t] of `hidden`; null: row t
};

}  // namespace perilune
