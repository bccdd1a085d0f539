#include "level.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace perilune {
namespace {

#if defined(__x86_64__)
// Linux hands out the large tile registers on request only (Documentation/arch/x86/xstate.rst).
bool request_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_tiles() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kBf16Tiles = 1u << 22, kTiles = 1u << 24;
  return (edx & kBf16Tiles) && (edx & kTiles) && request_tiles();
}

Level detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Level::plain;
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (!wide) return Level::avx2;
  // Every processor with the tile registers multiplies pairs of bfloat16 in vector registers as well.
  if (!__builtin_cpu_supports("avx512bf16")) return Level::avx512;
  return has_tiles() ? Level::amx : Level::avx512bf16;
}
#else
Level detect() { return Level::plain; }
#endif

std::atomic<Level>& current() {
  static std::atomic<Level> value{best_level()};
  return value;
}

}  // namespace

Level best_level() {
  static const Level value = detect();
  return value;
}

Level level() { return current().load(std::memory_order_relaxed); }

bool set_level(Level wanted) {
  if (wanted > best_level()) return false;
  current().store(wanted, std::memory_order_relaxed);
  return true;
}

const char* level_name(Level level) {
  switch (level) {
    case Level::plain: return "plain";
    case Level::avx2: return "avx2";
    case Level::avx512: return "avx512";
    case Level::avx512bf16: return "avx512bf16";
    case Level::amx: return "amx";
  }
  return "";
}

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (level()) {
    case Level::plain: return plain_kernels;
    case Level::avx2: return avx2_kernels;
    case Level::avx512: return avx512_kernels;
    case Level::avx512bf16: return avx512bf16_kernels;
    case Level::amx: return amx_kernels;
  }
#endif
  return plain_kernels;
}

}  // namespace perilune
