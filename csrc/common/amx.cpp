#include "common/amx.h"

#ifdef GRAM_FAST_AMX
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace gram_fast {

#ifdef GRAM_FAST_AMX
namespace {

// Linux gives the tile registers to a process that asks for them (Documentation/arch/x86/xstate.rst).
bool ask_for_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool has_tiles = (d >> 24 & 1) != 0 && (d >> 22 & 1) != 0;  // AMX-TILE, AMX-BF16
  if (!has_tiles || !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bf16")) return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};  // in bytes
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace

bool has_amx() {
  static const bool is_there = ask_for_tiles();
  return is_there;
}

[[gnu::target(GRAM_FAST_AMX)]] void configure_tiles() {
  const TileConfig config;
  // GCC 12 takes the instruction to read 8 bytes of the 64, and leaves the stores of the others out.
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

[[gnu::target(GRAM_FAST_AMX)]] void release_tiles() { _tile_release(); }
#else
bool has_amx() { return false; }
#endif

}  // namespace gram_fast
