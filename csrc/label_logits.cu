#include "cuda_util.cuh"
#include "label_logits.h"

namespace gram_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// One block a leaf: one pass over the row gives the sum of squares and both dot products.
template <typename T>
__global__ void label_logits_kernel(LabelLogits a) {
  const T* hidden = static_cast<const T*>(a.hidden) + a.rows[blockIdx.x] * a.hidden_stride;
  const T* weight_a = static_cast<const T*>(a.label_weight);
  const T* weight_b = weight_a + a.width;
  const T* norm = static_cast<const T*>(a.norm_weight);
  float squares = 0, dot_a = 0, dot_b = 0;
  for (int64_t d = threadIdx.x; d < a.width; d += kThreads) {
    const float x = load(hidden + d);
    const float scaled = norm ? x * load(norm + d) : x;
    squares += x * x;
    dot_a += scaled * load(weight_a + d);
    dot_b += scaled * load(weight_b + d);
  }
  __shared__ float partial[3][kWarps];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  squares = warp_sum(squares);
  dot_a = warp_sum(dot_a);
  dot_b = warp_sum(dot_b);
  if (lane == 0) {
    partial[0][warp] = squares;
    partial[1][warp] = dot_a;
    partial[2][warp] = dot_b;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  float sums[3] = {0, 0, 0};
  for (int i = 0; i < 3; ++i) {
    for (int w = 0; w < kWarps; ++w) sums[i] += partial[i][w];
  }
  const float rms = norm ? rsqrtf(sums[0] / static_cast<float>(a.width) + a.eps) : 1.0f;
  a.logits[2 * static_cast<int64_t>(blockIdx.x)] = sums[1] * rms;
  a.logits[2 * static_cast<int64_t>(blockIdx.x) + 1] = sums[2] * rms;
}

}  // namespace

void label_logits_cuda(const LabelLogits& args, void* stream) {
  if (args.num_leaves == 0) return;
  const auto blocks = static_cast<unsigned>(args.num_leaves);
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.dtype) {
    case Dtype::kFloat32:
      label_logits_kernel<float><<<blocks, kThreads, 0, on>>>(args);
      break;
    case Dtype::kFloat16:
      label_logits_kernel<__half><<<blocks, kThreads, 0, on>>>(args);
      break;
    case Dtype::kBFloat16:
      label_logits_kernel<__nv_bfloat16><<<blocks, kThreads, 0, on>>>(args);
      break;
  }
  check_launch("label_logits");
}

}  // namespace gram_fast
