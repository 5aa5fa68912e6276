// Tree attention with instructions that are named, where the op takes the fastest that the processor has: false where
// it lacks them. tests/ops/test_attention_instructions.py compiles it.
#include "ops/tree_attention.cpp"

namespace gram_fast {
namespace {

template <typename Isa>
bool attend_with(const TreeAttention& args) {
  dispatch_cpu(args.states.dtype, [&]<typename T>() { attend<Isa, T>(args); });
  return true;
}

}  // namespace
}  // namespace gram_fast

extern "C" {

using gram_fast::TreeAttention;

bool attend_plain(const TreeAttention* args) { return gram_fast::attend_with<gram_fast::PlainAttention>(*args); }

bool attend_avx2(const TreeAttention* args) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return gram_fast::attend_with<gram_fast::Avx2Attention>(*args);
  }
#endif
  return args == nullptr;
}

bool attend_avx512(const TreeAttention* args) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return gram_fast::attend_with<gram_fast::Avx512Attention>(*args);
  }
#endif
  return args == nullptr;
}

bool attend_amx(const TreeAttention* args) {
#ifdef GRAM_FAST_AMX
  if (gram_fast::has_amx() && args->states.dtype == gram_fast::Dtype::kBFloat16) {
    gram_fast::attend<gram_fast::AmxAttention, gram_fast::BFloat16>(*args);
    return true;
  }
#endif
  return args == nullptr;
}
}
