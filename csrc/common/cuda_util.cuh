#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "common/dtype.h"

namespace gram_fast {

constexpr int kWarpSize = 32;

__device__ inline float load(const float* p) { return *p; }
__device__ inline float load(const __half* p) { return __half2float(*p); }
__device__ inline float load(const __nv_bfloat16* p) { return __bfloat162float(*p); }

// `dispatch` with the element types of CUDA code.
template <typename Function>
void dispatch_cuda(Dtype dtype, const Function& function) {
  dispatch<float, __half, __nv_bfloat16>(dtype, function);
}

// Neighbouring numbers that one instruction loads or stores, where they fill 16 bytes or less.
template <typename T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  T values[kCount];
};

// Loads kCount numbers from `p`, which is aligned to a pack, as floats.
template <int kCount, typename T>
__device__ inline Pack<float, kCount> load_pack(const T* p) {
  const Pack<T, kCount> loaded = *reinterpret_cast<const Pack<T, kCount>*>(p);
  Pack<float, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) pack.values[i] = load(loaded.values + i);
  return pack;
}

template <int kCount>
__device__ inline void store_pack(float* p, const Pack<float, kCount>& pack) {
  *reinterpret_cast<Pack<float, kCount>*>(p) = pack;
}

// Whether every row is aligned to a pack: rows lie at `base` plus multiples of the `strides`, in elements.
template <typename T, int kCount>
bool rows_start_packs(const void* base, std::initializer_list<int64_t> strides) {
  if (reinterpret_cast<uintptr_t>(base) % sizeof(Pack<T, kCount>) != 0) return false;
  for (const int64_t stride : strides) {
    if (stride % kCount != 0) return false;
  }
  return true;
}

__device__ inline float warp_sum(float x) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Launches a kernel. A function, so that tests/cpp/cuda_on_cpu.h can replace it where g++ compiles the kernels.
#ifdef __CUDACC__
template <typename... Parameters, typename... Args>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void* stream, const Args&... args) {
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(args...);
}
#endif

inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

}  // namespace gram_fast
