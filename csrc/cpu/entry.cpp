// The one symbol of the library. Compiled without the instruction set's flags: it runs before we know that the machine
// has the instructions.
#include "backend.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fermi::cpu::FERMI_ISA {

Backend* create_backend(const BackendOptions& options);

namespace {

// The compiler's checks include the operating system's part: whether it saves the wider registers.
bool usable() {
#if defined(FERMI_ISA_AVX2)
    unsigned a = 0, b = 0, c = 0, d = 0;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
    __builtin_cpu_init();
    return f16c && __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
#elif defined(FERMI_ISA_AVX512)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
           __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
#else
    return true;  // portable; Advanced SIMD is part of every Armv8-A
#endif
}

}  // namespace
}  // namespace fermi::cpu::FERMI_ISA

extern "C" {
FERMI_API extern const fermi::BackendEntry fermi_backend;
const fermi::BackendEntry fermi_backend = {fermi::backend_interface_version, fermi::cpu::FERMI_ISA::usable,
                                           fermi::cpu::FERMI_ISA::create_backend};
}
