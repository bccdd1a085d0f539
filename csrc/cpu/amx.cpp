// AVX-512, with the tile registers for bfloat16 products.
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "level.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define PERILUNE_LEVEL amx
#define PERILUNE_LANES 16
#define PERILUNE_WIDE 1
#define PERILUNE_DOTS 1
#define PERILUNE_TILES 1
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
