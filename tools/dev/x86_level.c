/* The best level of x86-64 that this CPU and its system can run: 0 for the first one (SSE2), 1 for v3 (AVX2, FMA),
   2 for v4 (AVX-512). Linked into the libraries by tools/dev/build_kernels.py. */

#include <cpuid.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
int _fltused = 0; /* which object code for Windows asks for where it computes with floating point */
#else
#define EXPORT __attribute__((visibility("default")))
#endif

EXPORT long long alnumpy_level(void) {
    unsigned a, b, c, d, saved, high;
    const unsigned v3 = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C | bit_MOVBE | bit_POPCNT;
    const unsigned v3_more = bit_AVX2 | bit_BMI | bit_BMI2;
    const unsigned v4 = bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL;
    if (!__get_cpuid(1, &a, &b, &c, &d) || ~c & v3) return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0)); /* the registers that the system saves */
    if (~saved & 0x06) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || ~b & v3_more) return 0;
    if (~saved & 0xe6 || ~b & v4) return 1;
    return 2;
}
