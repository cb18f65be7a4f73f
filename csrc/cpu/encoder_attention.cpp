// Grouped-query attention of every token to its whole sequence.
#include <cstdio>
#include <cstdlib>

#include "cpu/kernels.h"

namespace fermi::cpu::FERMI_ISA {

Scratch scratch_of(const EncoderAttention&, int) {
    return {};
}

void run(const EncoderAttention&, const Lane&) {
    std::fputs("encoder_attention: there is no kernel for the CPU yet\n", stderr);
    std::abort();
}

}  // namespace fermi::cpu::FERMI_ISA
