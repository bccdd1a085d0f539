// AVX-512 whose vector registers also multiply pairs of bfloat16.
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "level.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define PERILUNE_LEVEL avx512bf16
#define PERILUNE_LANES 16
#define PERILUNE_WIDE 1
#define PERILUNE_DOTS 1
#define PERILUNE_TILES 0
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
