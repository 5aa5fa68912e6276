// Tree attention with instructions that are named, where the op takes the widest that the processor has.
// tests/ops/test_attention_instructions.py compiles it.
#include "ops/tree_attention.cpp"

namespace gram_fast {
namespace {

template <typename Isa>
void attend_with(const TreeAttention& args) {
  dispatch_cpu(args.dtype, [&]<typename T>() { attend<Isa, T>(args); });
}

}  // namespace
}  // namespace gram_fast

extern "C" {

void attend_plain(const gram_fast::TreeAttention* args) { gram_fast::attend_with<gram_fast::PlainAttention>(*args); }
#ifdef __x86_64__
void attend_avx2(const gram_fast::TreeAttention* args) { gram_fast::attend_with<gram_fast::Avx2Attention>(*args); }
void attend_avx512(const gram_fast::TreeAttention* args) { gram_fast::attend_with<gram_fast::Avx512Attention>(*args); }
#endif
}
