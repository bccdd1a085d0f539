// Sixteen lanes. GCC and Clang lower these types to whatever the level has: four SSE or NEON registers, two
// AVX ones, one AVX-512 one. Included inside the namespace of a level; no standard header may come in here.

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

#define PERILUNE_INLINE static inline __attribute__((always_inline))
#define PERILUNE_INLINE_MEMBER inline __attribute__((always_inline))

PERILUNE_INLINE Floats all(float x) { return Floats{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
PERILUNE_INLINE Words all(uint32_t x) { return Words{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

PERILUNE_INLINE Floats load(const float* from) {
  Floats value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

// GCC takes __builtin_convertvector apart into halves and quarters of a register.
PERILUNE_INLINE Words widen(Halves halves) {
#if PERILUNE_WIDE
  return (Words)_mm512_cvtepu16_epi32((__m256i)halves);
#else
  return __builtin_convertvector(halves, Words);
#endif
}

PERILUNE_INLINE Halves narrow(Words words) {
#if PERILUNE_WIDE
  return (Halves)_mm512_cvtepi32_epi16((__m512i)words);
#else
  return __builtin_convertvector(words, Halves);
#endif
}

PERILUNE_INLINE Floats load(const uint16_t* from) {  // bfloat16 is the upper half of a float
  Halves halves;
  __builtin_memcpy(&halves, from, sizeof halves);
  return (Floats)(widen(halves) << 16);
}

PERILUNE_INLINE void store(float* to, Floats value) { __builtin_memcpy(to, &value, sizeof value); }

PERILUNE_INLINE Words nearest_half(Floats value) {  // the nearest bfloat16, ties to even
  Words bits = (Words)value;
  Words half = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return value == value ? half : all(uint32_t(0x7fc0));
}

PERILUNE_INLINE void store(uint16_t* to, Floats value) {
  Halves halves = narrow(nearest_half(value));
  __builtin_memcpy(to, &halves, sizeof halves);
}

// What a load after a store to T would give. A product that went through here is no longer fused with a sum.
template <typename T>
PERILUNE_INLINE Floats rounded(Floats value) {
  if (sizeof(T) == sizeof(uint16_t)) return (Floats)(nearest_half(value) << 16);
#if PERILUNE_WIDE
  asm("" : "+v"(value));
#else
  asm("" : "+m"(value));
#endif
  return value;
}

template <typename T>
PERILUNE_INLINE Floats load_some(const T* from, int64_t count) {
  if (count >= 16) return load(from);
  T padded[16] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return load(padded);
}

template <typename T>
PERILUNE_INLINE void store_some(T* to, Floats value, int64_t count) {
  if (count >= 16) return store(to, value);
  T padded[16];
  store(padded, value);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

PERILUNE_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

PERILUNE_INLINE float total(Floats x) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  Eight halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  Eight eight = halves[0] + halves[1];
  Four quarters[2];
  __builtin_memcpy(quarters, &eight, sizeof eight);
  Four four = quarters[0] + quarters[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

#if PERILUNE_WIDE
// Each step adds halves of what it is given, as `total` does: [a | b], then [a b c d], then eight and sixteen at once.
PERILUNE_INLINE Floats fold_two(Floats a, Floats b) {
  __m512 x = (__m512)a, y = (__m512)b;
  return (Floats)_mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
}

PERILUNE_INLINE Floats fold_four(Floats ab, Floats cd) {
  __m512 x = (__m512)ab, y = (__m512)cd;
  return (Floats)_mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}

PERILUNE_INLINE Floats fold_eight(Floats u, Floats v) {
  __m512d x = (__m512d)u, y = (__m512d)v;
  return (Floats)_mm512_unpacklo_pd(x, y) + (Floats)_mm512_unpackhi_pd(x, y);
}

PERILUNE_INLINE Floats fold_sixteen(Floats w, Floats x) {
  __m512 a = (__m512)w, b = (__m512)x;
  return (Floats)_mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
#endif

PERILUNE_INLINE float largest(Floats x) {
  float most = x[0];
  for (int i = 1; i < 16; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

PERILUNE_INLINE bool any(Ints mask) {
#if PERILUNE_WIDE
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#else
  typedef int64_t Two __attribute__((vector_size(16)));
  Two parts[4];
  __builtin_memcpy(parts, &mask, sizeof mask);
  Two either = (parts[0] | parts[1]) | (parts[2] | parts[3]);
  return (either[0] | either[1]) != 0;
#endif
}

// exp(x) for x <= 0 within 2 units in the last place; 0 below -87; NaN stays NaN.
// Cody and Waite's reduction, then a Taylor polynomial of degree 6 on |f| <= ln(2) / 2.
PERILUNE_INLINE Floats exponential(Floats x) {
  const Floats kRound = all(12582912.0f);  // 1.5 * 2^23: the sum holds the rounded integer in its low bits
#if PERILUNE_WIDE  // what lies below is left out at the end, so it need not be bounded
  __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, (__m512)all(-87.0f), _CMP_NLT_UQ);
  Floats bounded = x;
#else
  Floats bounded = x < all(-87.0f) ? all(-87.0f) : x;
#endif
  Floats shifted = bounded * 1.44269504f + kRound;
  Floats n = shifted - kRound;
  Floats f = bounded - n * 0.693145752f;
  f = f - n * 1.42860677e-6f;
  Floats p = f * 1.38888889e-3f + 8.33333333e-3f;
  p = p * f + 4.16666667e-2f;
  p = p * f + 1.66666667e-1f;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
#if PERILUNE_WIDE
  return (Floats)_mm512_maskz_scalef_ps(kept, (__m512)p, (__m512)n);
#else
  Floats power = (Floats)(((Words)shifted << 23) + 0x3f800000u);
  return x < all(-87.0f) ? all(0.0f) : p * power;
#endif
}

PERILUNE_INLINE void multiply(Words a, uint32_t by, Words& high, Words& low) {
#if PERILUNE_WIDE
  __m512i factor = _mm512_set1_epi32((int)by), value = (__m512i)a;
  __m512i even = _mm512_mul_epu32(value, factor);
  __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(value, 32), factor);
  low = (Words)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  high = (Words)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
#else
  uint32_t in[16], above[16], below[16];
  __builtin_memcpy(in, &a, sizeof a);
  for (int i = 0; i < 16; ++i) {
    uint64_t product = uint64_t(in[i]) * by;
    above[i] = uint32_t(product >> 32);
    below[i] = uint32_t(product);
  }
  __builtin_memcpy(&high, above, sizeof high);
  __builtin_memcpy(&low, below, sizeof low);
#endif
}

// Philox4x32-10 of sixteen keys and positions at one block of four vocabulary indices.
PERILUNE_INLINE void philox(uint32_t block, const Words position[2], const Words key[2], Words out[4]) {
  Words c0 = all(block), c1 = position[0], c2 = position[1], c3 = all(uint32_t(0)), k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    Words high0, low0, high1, low1;
    multiply(c0, 0xd2511f53u, high0, low0);
    multiply(c2, 0xcd9e8d57u, high1, low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}
