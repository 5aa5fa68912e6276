#pragma once

// AMX: tile registers of 16 rows by 64 bytes, and products of bfloat16 tiles that are summed in float32. Code that uses
// them is compiled for it alone ([[gnu::target(GRAM_FAST_AMX)]]) and is called only where `has_amx()`.
#if defined(__x86_64__) && defined(__linux__)
#define GRAM_FAST_AMX "amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
#endif

namespace gram_fast {

// Whether the processor has AMX for bfloat16 and the system lets this process use it. Asks the system once.
bool has_amx();

#ifdef GRAM_FAST_AMX
// Makes all tile registers of this thread 16 rows by 64 bytes; `release_tiles` ends their use.
void configure_tiles();
void release_tiles();
#endif

}  // namespace gram_fast
