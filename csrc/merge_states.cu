#include "cuda_util.cuh"
#include "merge_states.h"

namespace gram_fast {
namespace {

constexpr int kWarpsPerBlock = 8;

// One warp a (query, head): every lane computes the two weights, then strides over the head width.
template <typename T>
__global__ void merge_kernel(MergeStates a) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.y;
  if (row >= a.num_queries * a.num_heads) return;
  const int64_t t = row / a.num_heads, h = row % a.num_heads;
  float* lse = a.lse + t * a.lse_stride_t + h * a.lse_stride_h;
  const float first = *lse;
  const float second = a.other_lse[t * a.other_lse_stride_t + h * a.other_lse_stride_h];
  const float largest = fmaxf(first, second);
  if (largest == -INFINITY) return;
  const float weight = expf(first - largest), other_weight = expf(second - largest);
  const float total = weight + other_weight;
  const float scale = weight / total, other_scale = other_weight / total;
  float* out = a.out + t * a.out_stride_t + h * a.out_stride_h;
  const T* other = static_cast<const T*>(a.other_out) + t * a.other_out_stride_t + h * a.other_out_stride_h;
  for (int64_t e = threadIdx.x; e < a.head_dim; e += kWarpSize) out[e] = scale * out[e] + other_scale * load(other + e);
  __syncwarp();  // all lanes have read the old lse
  if (threadIdx.x == 0) *lse = largest + logf(total);
}

}  // namespace

void merge_states_cuda(const MergeStates& args, void* stream) {
  const int64_t rows = args.num_queries * args.num_heads;
  if (rows == 0) return;
  const dim3 block(kWarpSize, kWarpsPerBlock);
  const auto blocks = static_cast<unsigned>((rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
  const auto on = static_cast<cudaStream_t>(stream);
  switch (args.other_dtype) {
    case Dtype::kFloat32:
      merge_kernel<float><<<blocks, block, 0, on>>>(args);
      break;
    case Dtype::kFloat16:
      merge_kernel<__half><<<blocks, block, 0, on>>>(args);
      break;
    case Dtype::kBFloat16:
      merge_kernel<__nv_bfloat16><<<blocks, block, 0, on>>>(args);
      break;
  }
  check_launch("merge_states");
}

}  // namespace gram_fast
