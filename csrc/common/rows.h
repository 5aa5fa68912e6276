#pragma once

#include <cstdint>

#include "common/parallel.h"

namespace gram_fast {

// Versions of a function (const Args&, row) for processors with wider vectors than the compiler may count on: up to 4
// times as fast. `kRow` is marked always_inline; loops of it that have neither branches nor library calls become vector
// code. A loop's vector body and its tail give an element the same bits. Of a * b + c * d the compiler may fuse either
// product with the sum, here one and there the other: files with such sums are compiled with -ffp-contract=off
// (CMakeLists.txt), the others fuse what they can.
template <auto kRow, typename Args>
void run_plain(const Args& args, int64_t row) {
  kRow(args, row);
}

#ifdef __x86_64__
template <auto kRow, typename Args>
[[gnu::target("avx2,fma")]] void run_avx2(const Args& args, int64_t row) {
  kRow(args, row);
}

template <auto kRow, typename Args>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl")]] void run_avx512(const Args& args, int64_t row) {
  kRow(args, row);
}
#endif

template <auto kRow, typename Args>
auto widest() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return run_avx512<kRow, Args>;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return run_avx2<kRow, Args>;
#endif
  return run_plain<kRow, Args>;
}

// Calls kRow(args, row) for every row of `width` elements, on several threads where there is work for all: 32,768
// elements take one thread 5 to 15 us. Waking two takes 1 us where they have cores of their own, and milliseconds where
// another process keeps the cores busy.
template <auto kRow, typename Args>
void for_each_row(const Args& args, int64_t num_rows, int64_t width) {
  const auto run = widest<kRow, Args>();
#pragma omp parallel for schedule(static) num_threads(num_threads()) if (num_rows * width >= 32768)
  for (int64_t row = 0; row < num_rows; ++row) run(args, row);
}

}  // namespace gram_fast
