#include "common/cuda_util.cuh"
#include "ops/merge_states.h"

namespace gram_fast {
namespace {

constexpr int kThreads = 256;
// Numbers of a thread: 16 bytes of `out`, which is read and written, so most of what moves; neighbouring threads then
// touch neighbouring bytes of both results.
constexpr int kPack = 4;

// 2^lane_bits neighbouring threads of one warp take a row (query, head). Each computes the two weights; between them
// they stride over the head width, in two steps or more: the weights cost more instructions than a step.
template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) merge_kernel(MergeStates a, int lane_bits) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) >> lane_bits;
  const int lane = threadIdx.x & ((1 << lane_bits) - 1);
  const bool is_row = row < a.num_queries * a.num_heads;
  const int64_t t = row / a.num_heads, h = row % a.num_heads;
  float* lse = a.lse + t * a.lse_stride_t + h * a.lse_stride_h;
  const float* other_lse = a.other_lse + t * a.other_lse_stride_t + h * a.other_lse_stride_h;
  const float first = is_row ? *lse : -INFINITY, second = is_row ? *other_lse : -INFINITY;
  const float largest = fmaxf(first, second);
  const bool has_keys = largest != -INFINITY;  // on neither side: the row stays as it is
  const float weight = expf(first - largest), other_weight = expf(second - largest);
  const float total = weight + other_weight, inverse = 1.0f / total;
  const float scale = weight * inverse, other_scale = other_weight * inverse;
  float* out = a.out + t * a.out_stride_t + h * a.out_stride_h;
  const T* other = static_cast<const T*>(a.other_out) + t * a.other_out_stride_t + h * a.other_out_stride_h;
  const int64_t width = has_keys ? a.head_dim : 0;
  for (int64_t e = lane * kCount; e < width; e += kCount << lane_bits) {
    Pack<float, kCount> merged = load_pack<kCount>(out + e);
    const Pack<float, kCount> added = load_pack<kCount>(other + e);
#pragma unroll
    for (int i = 0; i < kCount; ++i) merged.values[i] = scale * merged.values[i] + other_scale * added.values[i];
    store_pack(out + e, merged);
  }
  __syncthreads();  // all threads of the row have read its lse
  if (has_keys && lane == 0) *lse = largest + logf(total);
}

template <typename T, int kCount>
void launch(const MergeStates& a, cudaStream_t stream) {
  int lane_bits = 0;
  while ((1 << lane_bits) < kWarpSize && (2 * kCount << lane_bits) < a.head_dim) ++lane_bits;
  const int64_t threads = (a.num_queries * a.num_heads) << lane_bits;
  const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  launch_kernel(merge_kernel<T, kCount>, blocks, kThreads, stream, a, lane_bits);
}

template <typename T>
void launch(const MergeStates& a, cudaStream_t stream) {
  const bool in_packs = a.head_dim % kPack == 0 &&
                        rows_start_packs<float, kPack>(a.out, {a.out_stride_t, a.out_stride_h}) &&
                        rows_start_packs<T, kPack>(a.other_out, {a.other_out_stride_t, a.other_out_stride_h});
  if (in_packs) return launch<T, kPack>(a, stream);
  return launch<T, 1>(a, stream);
}

}  // namespace

void merge_states_cuda(const MergeStates& args, void* stream) {
  if (args.num_queries * args.num_heads == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  dispatch_cuda(args.other_dtype, [&]<typename T>() { launch<T>(args, on); });
  check_launch("merge_states");
}

}  // namespace gram_fast
