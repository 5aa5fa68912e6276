#include "common/cuda_util.cuh"
#include "ops/label_logits.h"

namespace gram_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
// With one leaf a block, few leaves spread over the chip. Many fill it anyway: kShare in a block then share the reads
// of the weights, which are three times the bytes of a leaf.
constexpr int kShare = 4;
#ifndef GRAM_FAST_MANY_LEAVES  // tests on the CPU, where a thousand leaves take a minute, ask for fewer
#define GRAM_FAST_MANY_LEAVES 1024
#endif
constexpr int64_t kMany = GRAM_FAST_MANY_LEAVES;

// One block kLeaves leaves: one pass over the rows gives their sums of squares and both dot products.
template <typename T, int kCount, int kLeaves>
__global__ void __launch_bounds__(kThreads) label_logits_kernel(LabelLogits a) {
  const T* weight_a = static_cast<const T*>(a.label_weight);
  const T* weight_b = weight_a + a.width;
  const T* norm = static_cast<const T*>(a.norm_weight);
  const int64_t first_leaf = static_cast<int64_t>(blockIdx.x) * kLeaves;
  const T* hidden[kLeaves];
#pragma unroll
  for (int l = 0; l < kLeaves; ++l) {
    // The last block's spare places read its last leaf once more and do not write.
    const int64_t row = a.rows[min(first_leaf + l, a.num_leaves - 1)];
    hidden[l] = static_cast<const T*>(a.hidden) + row * a.hidden_stride;
  }
  float sums[kLeaves][3] = {};  // squares, dot products with a and b
  for (int64_t d = threadIdx.x * kCount; d < a.width; d += kThreads * kCount) {
    Pack<float, kCount> label_a = load_pack<kCount>(weight_a + d), label_b = load_pack<kCount>(weight_b + d);
    if (norm) {
      const Pack<float, kCount> scale = load_pack<kCount>(norm + d);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        label_a.values[i] *= scale.values[i];
        label_b.values[i] *= scale.values[i];
      }
    }
#pragma unroll
    for (int l = 0; l < kLeaves; ++l) {
      const Pack<float, kCount> x = load_pack<kCount>(hidden[l] + d);
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        sums[l][0] += x.values[i] * x.values[i];
        sums[l][1] += x.values[i] * label_a.values[i];
        sums[l][2] += x.values[i] * label_b.values[i];
      }
    }
  }
  __shared__ float partial[kLeaves][3][kWarps];
#pragma unroll
  for (int l = 0; l < kLeaves; ++l) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const float sum = warp_sum(sums[l][i]);
      if (threadIdx.x % kWarpSize == 0) partial[l][i][threadIdx.x / kWarpSize] = sum;
    }
  }
  __syncthreads();
  const int l = threadIdx.x;
  if (l >= kLeaves || first_leaf + l >= a.num_leaves) return;
  float of_block[3] = {};
  for (int i = 0; i < 3; ++i) {
    for (int w = 0; w < kWarps; ++w) of_block[i] += partial[l][i][w];
  }
  const float rms = norm ? rsqrtf(of_block[0] / static_cast<float>(a.width) + a.eps) : 1.0f;
  a.logits[2 * (first_leaf + l)] = of_block[1] * rms;
  a.logits[2 * (first_leaf + l) + 1] = of_block[2] * rms;
}

template <typename T, int kCount>
void launch(const LabelLogits& a, cudaStream_t stream) {
  const auto leaves = static_cast<unsigned>(a.num_leaves);
  if (a.num_leaves < kMany) {
    launch_kernel(label_logits_kernel<T, kCount, 1>, leaves, kThreads, stream, a);
  } else {
    launch_kernel(label_logits_kernel<T, kCount, kShare>, (leaves + kShare - 1) / kShare, kThreads, stream, a);
  }
}

template <typename T>
void launch(const LabelLogits& a, cudaStream_t stream) {
  constexpr int kPack = 16 / sizeof(T);
  const bool in_packs = a.width % kPack == 0 && rows_start_packs<T, kPack>(a.hidden, {a.hidden_stride}) &&
                        rows_start_packs<T, kPack>(a.label_weight, {}) && rows_start_packs<T, kPack>(a.norm_weight, {});
  if (in_packs) return launch<T, kPack>(a, stream);
  return launch<T, 1>(a, stream);
}

}  // namespace

void label_logits_cuda(const LabelLogits& args, void* stream) {
  if (args.num_leaves == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  dispatch_cuda(args.dtype, [&]<typename T>() { launch<T>(args, on); });
  check_launch("label_logits");
}

}  // namespace gram_fast
