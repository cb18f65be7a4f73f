// The experts of each token.
#include <cstdio>
#include <cstdlib>

#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

// Whatever the logits, infinite or not numbers, each index written is one of an expert: nobody looks at them again
// before an ExpertLinear of the same recording follows them.
void run(const Route&, const Lane&) {
    std::fputs("route: there is no kernel for the CPU yet\n", stderr);
    std::abort();
}

}  // namespace fermi::cpu::FERMI_ISA
