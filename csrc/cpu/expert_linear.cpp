// Linear with an expert's own weights for each token.
#include <cstdio>
#include <cstdlib>

#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

Scratch scratch_of(const ExpertLinear&, int) {
    return {};
}

void run(const ExpertLinear&, const Lane&) {
    std::fputs("expert_linear: there is no kernel for the CPU yet\n", stderr);
    std::abort();
}

}  // namespace fermi::cpu::FERMI_ISA
