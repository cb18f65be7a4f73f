// What products of a linear op share: the piece of work, and where its results go.
#pragma once

#include "cpu/half.h"
#include "cpu/lane.h"
#include "tensor.h"

namespace fermi::cpu::FERMI_ISA {

/// Tokens × outputs; outputs count from the first row of the weight.
struct Item {
    Range tokens;
    Range outputs;
};

/// Where results go: those of the item's first token and output to `data`.
struct Results {
    float* data;
    std::int64_t stride;  // elements from token to token
    bool add;             // to what is there
};

inline float bias_of(const Tensor* bias, std::int64_t row) {
    if (bias == nullptr) return 0.0F;
    float value = 0.0F;
    with_float(bias->dtype(), [&]<class T>(T) { value = to_float(bias->data<T>()[row * bias->stride(0)]); });
    return value;
}

}  // namespace fermi::cpu::FERMI_ISA
