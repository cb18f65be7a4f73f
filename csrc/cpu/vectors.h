// A row as vectors: whole ones, then what is left.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

/// Calls part(load, store) for each vector of [0, n), where load(x) and store(to, value) move its elements; what
/// `load` finds missing of the last one is zero.
template <class Part>
FERMI_INLINE void for_vectors(std::int64_t n, const Part& part) {
    std::int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) {
        part([i](const auto* x) { return load(x + i); }, [i](auto* to, Vec value) { store(to + i, value); });
    }
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        part([i, rest](const auto* x) { return load_partial(x + i, rest); },
             [i, rest](auto* to, Vec value) { store_partial(to + i, value, rest); });
    }
}

/// The sum of a row's terms, where add(sum, value, count) is a sum with those of the first `count` elements of `value`
/// added. Four accumulators along the row: an order that depends on n only.
template <class Add>
FERMI_INLINE float reduce(const float* x, std::int64_t n, const Add& add) {
    constexpr int unroll = 4;
    Vec sums[unroll] = {zero(), zero(), zero(), zero()};
    std::int64_t i = 0;
    for (; i + unroll * Vec::width <= n; i += unroll * Vec::width) {
        for (int u = 0; u < unroll; ++u) sums[u] = add(sums[u], load(x + i + u * Vec::width), Vec::width);
    }
    for (; i + Vec::width <= n; i += Vec::width) sums[0] = add(sums[0], load(x + i), Vec::width);
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        sums[1] = add(sums[1], load_partial(x + i, rest), rest);
    }
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace fermi::cpu::FERMI_ISA
