// One vector of each sequence's tokens.
#include <cstdio>
#include <cstdlib>

#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

void run(const Pool&, const Lane&) {
    std::fputs("pool: there is no kernel for the CPU yet\n", stderr);
    std::abort();
}

}  // namespace fermi::cpu::FERMI_ISA
