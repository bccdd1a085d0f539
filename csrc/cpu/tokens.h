// Sums and steps over the tokens of segments. Included inside the namespace of a level.
//
// A sum is kept in fp64 in eight lanes, token t of its segment in lane t % 8, and the lanes are added in a tree.

typedef double Doubles __attribute__((vector_size(64)));
typedef float Eight __attribute__((vector_size(32)));
typedef int64_t Flags __attribute__((vector_size(64)));
enum { kEight = 8 };

PERILUNE_INLINE Doubles eight(const float* from, int64_t left) {
  Eight values = {};
  if (left >= kEight) __builtin_memcpy(&values, from, sizeof(values));
  else for (int64_t k = 0; k < left; ++k) values[k] = from[k];
#if PERILUNE_WIDE  // GCC takes __builtin_convertvector apart
  return (Doubles)_mm512_cvtps_pd((__m256)values);
#else
  return __builtin_convertvector(values, Doubles);
#endif
}

PERILUNE_INLINE Doubles eight(const double* from, int64_t left) {
  Doubles values = {};
  if (left >= kEight) __builtin_memcpy(&values, from, sizeof(values));
  else for (int64_t k = 0; k < left; ++k) values[k] = from[k];
  return values;
}

PERILUNE_INLINE double total_of(Doubles lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

template <typename T>
static void sum_segments(const Segments& segments, const void* values, bool mean, void* out, int64_t first,
                         int64_t last) {
  for (int64_t s = first; s < last; ++s) {
    int64_t start = segments.starts[s], tokens = segments.starts[s + 1] - start;
    const T* own = static_cast<const T*>(values) + start;
    Doubles sum = {};
    int64_t t = 0;
    for (; t + kEight <= tokens; t += kEight) sum += eight(own + t, kEight);
    if (t < tokens) sum += eight(own + t, tokens - t);
    static_cast<T*>(out)[s] = T(mean ? total_of(sum) / double(tokens) : total_of(sum));
  }
}

// Values are widened for the comparison, which changes none.
template <typename T>
static void max_segments(const Segments& segments, const void* values, void* out, int64_t* index, int64_t first,
                         int64_t last) {
  const T* all_values = static_cast<const T*>(values);
  for (int64_t s = first; s < last; ++s) {
    int64_t start = segments.starts[s], end = segments.starts[s + 1], t = start;
    Doubles most = Doubles{} + double(all_values[start]);
    Flags odd = {};
    for (; t + kEight <= end; t += kEight) {
      Doubles some = eight(all_values + t, kEight);
      most = some > most ? some : most;
      odd |= some != some;
    }
    double largest = most[0];
    int64_t any_odd = 0;
    for (int k = 0; k < kEight; ++k) {
      largest = most[k] > largest ? most[k] : largest;
      any_odd |= odd[k];
    }
    for (; t < end; ++t) {
      largest = all_values[t] > largest ? double(all_values[t]) : largest;
      any_odd |= all_values[t] != all_values[t];
    }
    int64_t place = start;
    while (any_odd ? all_values[place] == all_values[place] : double(all_values[place]) != largest) ++place;
    static_cast<T*>(out)[s] = all_values[place];
    index[s] = place;
  }
}

template <typename T>
static void loss_segments(const PolicyGradient& args, double* losses, void* drift, int64_t first, int64_t last) {
  for (int64_t s = first; s < last; ++s) {
    int64_t start = args.segments.starts[s], tokens = args.segments.starts[s + 1] - start;
    const T* logprob = static_cast<const T*>(args.logprob) + start;
    const T* coefficient = static_cast<const T*>(args.coefficient) + start;
    const T* reference = args.reference ? static_cast<const T*>(args.reference) + start : logprob;
    Doubles weighted = {}, gap = {};
    int64_t t = 0;
    for (; t + kEight <= tokens; t += kEight) {
      Doubles value = eight(logprob + t, kEight);
      weighted += value * eight(coefficient + t, kEight);
      gap += value - eight(reference + t, kEight);
    }
    if (int64_t left = tokens - t) {
      Doubles value = eight(logprob + t, left);
      weighted += value * eight(coefficient + t, left);
      gap += value - eight(reference + t, left);
    }
    double moved = total_of(gap), scaled = moved / args.length;
    static_cast<T*>(drift)[s] = T(moved);
    losses[s] = args.tau / 2 * scaled * scaled - total_of(weighted);
  }
}

template <typename T>
static void gradient_segments(const PolicyGradient& args, const void* drift, const void* g_loss, void* gradient,
                              int64_t first, int64_t last) {
  double above = *static_cast<const T*>(g_loss), square = args.tau / (args.length * args.length);
  const T *coefficient = static_cast<const T*>(args.coefficient), *weight = static_cast<const T*>(args.weight);
  T *out = static_cast<T*>(gradient), scale = T(above);
  for (int64_t s = first; s < last; ++s) {
    T pull = T(above * square * double(static_cast<const T*>(drift)[s]));
    int64_t start = args.segments.starts[s], end = args.segments.starts[s + 1];
    if (weight)
      for (int64_t t = start; t < end; ++t) out[t] = weight[t] * (pull - scale * coefficient[t]);
    else
      for (int64_t t = start; t < end; ++t) out[t] = pull - scale * coefficient[t];
  }
}

// Lines of one value; the first and the last of a segment lie where they must, the others each in one line of the cache.
template <typename Word>
static void spread_words(const Segments& segments, const void* values, void* out, int64_t first, int64_t last) {
  typedef Word Line __attribute__((vector_size(64)));
  constexpr int64_t kLine = 64 / int64_t(sizeof(Word));
  for (int64_t s = first; s < last; ++s) {
    Word value = static_cast<const Word*>(values)[s];
    Word *to = static_cast<Word*>(out) + segments.starts[s], *end = static_cast<Word*>(out) + segments.starts[s + 1];
    if (end - to >= kLine) {
      Line line = value - Line{};
      __builtin_memcpy(to, &line, sizeof line);
      to += kLine - int64_t(uintptr_t(to) % 64 / sizeof(Word));
      for (; end - to > kLine; to += kLine) __builtin_memcpy(to, &line, sizeof line);
      __builtin_memcpy(end - kLine, &line, sizeof line);
    } else {
      while (to < end) *to++ = value;
    }
  }
}

static void mask_segments(const Segments& segments, const int64_t* versions, const bool* carries, int64_t oldest,
                          int64_t newest, bool* mask, int64_t* counts, int64_t first, int64_t last) {
  const int64_t* __restrict stamps = versions;
  const uint8_t* __restrict wanted = reinterpret_cast<const uint8_t*>(carries);
  uint8_t* __restrict out = reinterpret_cast<uint8_t*>(mask);
  for (int64_t s = first; s < last; ++s) {
    int64_t start = segments.starts[s], end = segments.starts[s + 1], count = 0, late = 0;
    for (int64_t t = start; t < end; ++t) {
      uint8_t kept = wanted[t] & uint8_t(stamps[t] >= oldest);
      out[t] = kept;
      count += kept;
      late |= stamps[t] > newest;
    }
    counts[s] = late ? -1 : count;
  }
}

// The sign bit of any value or step below 0. Steps between values that are not negative can not wrap, so no fall hides.
static bool rises_from_zero(const int64_t* index, int64_t tokens) {
  const uint64_t* bits = reinterpret_cast<const uint64_t*>(index);
  uint64_t signs = tokens ? bits[0] : 0;
  for (int64_t t = 1; t < tokens; ++t) signs |= bits[t] | (bits[t] - bits[t - 1]);
  return int64_t(signs) >= 0;
}
