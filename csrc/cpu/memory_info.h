// How much memory the machine, or the container this process runs in, has left.
#pragma once

#include "backend.h"

namespace fermi::cpu::FERMI_ISA {

/// Honours the limits of Linux control groups (v2 and v1).
MemoryInfo memory_info();

}  // namespace fermi::cpu::FERMI_ISA
