// Tree attention and its backward with instructions that are named, where the ops take the fastest that the processor
// has: false where it lacks them. tests/ops/test_attention_instructions.py compiles it.
#include "ops/tree_attention.cpp"
#include "ops/tree_attention_backward.cpp"

namespace gram_fast {
namespace {

// The backward where there are gradients.
template <typename Isa>
bool run_with(const TreeAttentionBackward& args) {
  dispatch_cpu(args.forward.states.dtype, [&]<typename T>() {
    if (args.grad_q == nullptr) {
      attend<Isa, T>(args.forward);
    } else {
      differentiate<Isa, T>(args);
    }
  });
  return true;
}

}  // namespace
}  // namespace gram_fast

extern "C" {

using gram_fast::TreeAttentionBackward;

bool run_plain(const TreeAttentionBackward* args) { return gram_fast::run_with<gram_fast::PlainAttention>(*args); }

bool run_avx2(const TreeAttentionBackward* args) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return gram_fast::run_with<gram_fast::Avx2Attention>(*args);
  }
#endif
  return args == nullptr;
}

bool run_avx512(const TreeAttentionBackward* args) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return gram_fast::run_with<gram_fast::Avx512Attention>(*args);
  }
#endif
  return args == nullptr;
}

bool run_amx(const TreeAttentionBackward* args) {
#ifdef GRAM_FAST_AMX
  if (gram_fast::has_amx() && args->forward.states.dtype == gram_fast::Dtype::kBFloat16) {
    if (args->grad_q == nullptr) {
      gram_fast::attend<gram_fast::AmxAttention, gram_fast::BFloat16>(args->forward);
    } else {
      gram_fast::differentiate<gram_fast::AmxAttention, gram_fast::BFloat16>(*args);
    }
    return true;
  }
#endif
  return args == nullptr;
}
}
