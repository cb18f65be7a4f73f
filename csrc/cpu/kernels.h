// One kernel per op: run on every lane of the pool together, it neither validates, allocates nor throws.
#pragma once

#include "cpu/lane.h"
#include "ops.h"

namespace fermi::cpu::FERMI_ISA {

void run(const Embed& op, const Lane& lane);
void run(const Norm& op, const Lane& lane);
void run(const Linear& op, const Lane& lane);
void run(const RopeAngles& op, const Lane& lane);
void run(const RopeAppend& op, const Lane& lane);
void run(const Rope& op, const Lane& lane);
void run(const Attention& op, const Lane& lane);
void run(const EncoderAttention& op, const Lane& lane);
void run(const Pool& op, const Lane& lane);
void run(const Route& op, const Lane& lane);
void run(const ExpertLinear& op, const Lane& lane);
void run(const GatherRows& op, const Lane& lane);
void run(const Copy& op, const Lane& lane);
void run(const Quantize& op, const Lane& lane);

/// The scratch memory of an op on `lanes` lanes; ops without an overload need none.
template <class AnyOp>
Scratch scratch_of(const AnyOp&, int) {
    return {};
}
Scratch scratch_of(const Linear& op, int lanes);
Scratch scratch_of(const RopeAppend& op, int lanes);
Scratch scratch_of(const Attention& op, int lanes);
Scratch scratch_of(const EncoderAttention& op, int lanes);
Scratch scratch_of(const ExpertLinear& op, int lanes);
Scratch scratch_of(const Quantize& op, int lanes);

}  // namespace fermi::cpu::FERMI_ISA
