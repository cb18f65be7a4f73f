// The experts of each token: those of its largest scores, and what they weigh.
//
// Scores rise with logits, so logits are compared: two that differ stay apart where their scores would round to one.
#include <algorithm>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/simd/math.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Calls visitor(part, its first index, its size) for n numbers of which the last vector is filled up with -∞.
template <class Visitor>
void for_vectors(const float* x, std::int64_t n, Visitor&& visitor) {
    for (std::int64_t i = 0; i < n; i += Vec::width) {
        const int count = static_cast<int>(std::min<std::int64_t>(Vec::width, n - i));
        if (count == Vec::width) {
            visitor(load(x + i), i, count);
            continue;
        }
        float part[Vec::width];
        std::fill_n(part, Vec::width, -std::numeric_limits<float>::infinity());
        std::copy_n(x + i, count, part);
        visitor(load(part), i, count);
    }
}

void put(float* to, Vec value, int count) {
    count == Vec::width ? store(to, value) : store_partial(to, value, count);
}

/// Σ exp(x - shift), in an order that depends on n only.
float sum_of_exponentials(const float* x, std::int64_t n, float shift) {
    Vec total = zero();
    for_vectors(x, n, [&](Vec part, std::int64_t, int) { total = total + exp(part - broadcast(shift)); });
    return sum(total);
}

/// The k largest in falling order, the first of equal ones first, and their places. Each is put where it belongs among
/// those before it, so that whatever the numbers, none included, k different places come of it.
void largest_first(const float* x, std::int64_t n, std::int64_t k, std::int32_t* places, float* values) {
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < n; ++i) {
        if (found == k && !(x[i] > values[k - 1])) continue;
        std::int64_t at = found < k ? found++ : k - 1;
        for (; at > 0 && x[i] > values[at - 1]; --at) {
            values[at] = values[at - 1];
            places[at] = places[at - 1];
        }
        values[at] = x[i];
        places[at] = static_cast<std::int32_t>(i);
    }
}

/// The weights of one token's experts, in place of their logits; `all`: the logits of every expert.
void weigh(const Route& op, const float* all, float* chosen, std::int64_t k) {
    const bool softmax = op.scoring == Scoring::softmax;
    const float most = chosen[0];
    Vec total = zero();
    for_vectors(chosen, k, [&](Vec part, std::int64_t i, int count) {
        const Vec score = softmax ? exp(part - broadcast(most)) : sigmoid(part);
        total = total + score;
        put(chosen + i, score, count);
    });
    float divisor = 1.0F;
    if (op.normalize) {  // then a softmax needs its other terms no more
        divisor = sum(total);
    } else if (softmax) {
        divisor = sum_of_exponentials(all, op.logits.size(1), most);
    }
    const Vec factor = broadcast(divisor > 0.0F ? op.scale / divisor : 0.0F);
    for_vectors(chosen, k, [&](Vec part, std::int64_t i, int count) { put(chosen + i, part * factor, count); });
}

}  // namespace

void run(const Route& op, const Lane& lane) {
    const std::int64_t k = op.experts.size(1);
    const Range tokens = lane.share(op.logits.size(0));
    for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
        const float* logits = op.logits.data<float>() + t * op.logits.stride(0);
        float* weights = op.weights.data<float>() + t * k;
        largest_first(logits, op.logits.size(1), k, op.experts.data<std::int32_t>() + t * k, weights);
        weigh(op, logits, weights, k);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
