// The online softmax of prefill (arXiv 2205.14135): from the scores of a block of positions to weights.
#pragma once

#include "cpu/attention_layout.h"
#include "cpu/simd.h"
#include "cpu/simd/math.h"

namespace fermi::cpu::FERMI_ISA {

/// Turns the scores of a block, of `count` rows from `first` on, into weights e^(score - maximum), raises the maxima
/// and scales the sums down to them. Positions of the part that a row does not see get weight zero, and add exact
/// zeros; so a row's bits do not depend on the part, as long as it covers what the row sees.
///
/// `scaled`: keys and values are integers; scores and weights take their scales. Panel::put rounds weights.
template <bool scaled, class Panel>
void soften(const Tile& tile, const Plan& plan, std::int64_t start, const Part& part, int first, int count,
            const Workspace& work, const Sums& sums) {
    const int begin = part.first_vector(), end = part.end_of_vectors();
    float scales[row_tile] = {};
    float bounds[row_tile];
    for (int r = 0; r < count; ++r) {
        float* row = work.scores + r * block_keys;
        if constexpr (scaled) {
            for (int j = begin; j < end; j += Vec::width) store(row + j, load(row + j) * load(work.key_scales + j));
        }
        const Part visible(tile.visible(first + r), start, block_keys);
        std::fill(row + begin, row + std::max(begin, visible.first), minus_infinity);
        std::fill(row + std::max(begin, visible.last), row + end, minus_infinity);
        Vec highest = load(row + begin);
        for (int j = begin + Vec::width; j < end; j += Vec::width) highest = maximum(highest, load(row + j));
        const float before = sums.maximum[first + r];
        const float raised = std::max(before, largest(highest));
        // No key seen yet: any finite bound makes all weights zero.
        bounds[r] = raised == minus_infinity ? 0.0F : raised;
        scales[r] = before - bounds[r];
        sums.maximum[first + r] = raised;
    }
    for (int r = 0; r < count; r += Vec::width) store(scales + r, exp(load(scales + r)));
    for (int r = 0; r < count; ++r) {
        auto* row = reinterpret_cast<typename Panel::X*>(work.weights) + r * block_keys;
        const Vec bound = broadcast(bounds[r]);
        Vec total = zero();
        for (int j = begin; j < end; j += Vec::width) {
            const Vec weight = exp(load(work.scores + r * block_keys + j) - bound);
            if constexpr (scaled) {
                Panel::put(row + j, weight * load(work.value_scales + j));
                total = total + weight;
            } else {
                total = total + Panel::put(row + j, weight);  // of the weights as the products see them
            }
        }
        sums.total[first + r] = sums.total[first + r] * scales[r] + sum(total);
        if (scales[r] != 1.0F) {
            const Vec scale = broadcast(scales[r]);
            float* values = sums.values + (first + r) * plan.dim;
            for (std::int64_t d = 0; d < plan.dim; d += Vec::width) store(values + d, load(values + d) * scale);
        }
    }
}

}  // namespace fermi::cpu::FERMI_ISA
