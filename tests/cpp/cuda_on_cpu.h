// Runs the CUDA kernels of csrc on the CPU: included before each .cu file, it makes C++20 of it (needs the headers of
// the CUDA toolkit, not nvcc). A thread of a block is a thread of the operating system, so barriers, shuffles and what
// lies in shared memory between them are as real as on a GPU, and sanitizers see every access. Blocks run in turn.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

namespace cuda_on_cpu {

constexpr unsigned kWarpSize = 32;

struct Warp {
  explicit Warp(unsigned threads) : barrier(threads) {}
  std::barrier<> barrier;
  // What each lane shows the others, by turns in one of two places: a lane that is one exchange ahead leaves alone what
  // others still read, and none can be two ahead.
  uint64_t values[2][kWarpSize];
};

struct Block {
  explicit Block(unsigned threads) : barrier(threads) {
    for (unsigned first = 0; first < threads; first += kWarpSize) {
      warps.push_back(std::make_unique<Warp>(std::min(kWarpSize, threads - first)));
    }
  }
  std::barrier<> barrier;
  std::vector<std::unique_ptr<Warp>> warps;
};

struct Thread {
  dim3 thread_index, block_index, block_size, grid_size;
  unsigned lane;
  Block* block;
  Warp* warp;
  unsigned exchanges = 0;
};
inline thread_local Thread self;

inline dim3 index_in(dim3 shape, unsigned i) { return dim3(i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y); }
inline unsigned size(dim3 shape) { return shape.x * shape.y * shape.z; }

}  // namespace cuda_on_cpu

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run in turn, so one copy serves them all
#define __launch_bounds__(...)

#define threadIdx (cuda_on_cpu::self.thread_index)
#define blockIdx (cuda_on_cpu::self.block_index)
#define blockDim (cuda_on_cpu::self.block_size)
#define gridDim (cuda_on_cpu::self.grid_size)

using std::max;
using std::min;

inline void __syncthreads() { cuda_on_cpu::self.block->barrier.arrive_and_wait(); }
inline void __syncwarp(unsigned = ~0u) { cuda_on_cpu::self.warp->barrier.arrive_and_wait(); }

// The value of another lane; all lanes of the warp that are still there take part, whatever the mask says.
template <typename T>
T lane_value(T value, unsigned lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  cuda_on_cpu::Warp& warp = *cuda_on_cpu::self.warp;
  uint64_t* values = warp.values[cuda_on_cpu::self.exchanges++ % 2];
  std::memcpy(&values[cuda_on_cpu::self.lane], &value, sizeof value);
  warp.barrier.arrive_and_wait();
  std::memcpy(&value, &values[lane % cuda_on_cpu::kWarpSize], sizeof value);
  return value;
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int lane_mask) {
  return lane_value(value, cuda_on_cpu::self.lane ^ static_cast<unsigned>(lane_mask));
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return lane_value(value, static_cast<unsigned>(lane));
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace gram_fast {

// Stands for the one of csrc/common/cuda_util.cuh.
template <typename... Parameters, typename... Args>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void*, const Args&... args) {
  using namespace cuda_on_cpu;
  const unsigned threads = size(block);
  std::optional<Block> current;
  const auto next_block = [&]() noexcept { current.emplace(threads); };
  next_block();
  std::barrier between_blocks(threads, next_block);
  const auto run = [&](unsigned thread) {
    for (unsigned b = 0; b < size(grid); ++b) {
      Warp& warp = *current->warps[thread / kWarpSize];
      self = {index_in(block, thread), index_in(grid, b), block, grid, thread % kWarpSize, &*current, &warp};
      kernel(args...);
      // As on a GPU, barriers do not wait for threads that have left.
      warp.barrier.arrive_and_drop();
      current->barrier.arrive_and_drop();
      between_blocks.arrive_and_wait();
    }
  };
  std::vector<std::jthread> running;
  for (unsigned thread = 0; thread < threads; ++thread) running.emplace_back(run, thread);
}

}  // namespace gram_fast
