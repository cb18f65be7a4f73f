// Rotary position embeddings (arXiv 2104.09864): angles of a step's tokens, rotation, append to the KV cache.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Frequency i of a token of a sequence of `length` tokens.
float frequency_of(const RopeAngles& op, std::int64_t i, std::int32_t length) {
    const std::int64_t half = op.frequencies.size(1);
    const std::int64_t row = op.rule == RopeRule::longrope && length > op.original_length ? 1 : 0;
    if (op.rule == RopeRule::dynamic_ntk && length > op.original_length) {
        // base' = base · (factor · length / original - (factor - 1))^(dim / (dim - 2)), frequency = base'^(-2i / dim);
        // double up to base', float where Transformers has tensors.
        const double dim = 2.0 * static_cast<double>(half);
        const double factor = static_cast<double>(op.factor);
        const double stretch = factor * length / op.original_length - (factor - 1.0);
        const double base = static_cast<double>(op.base) * std::pow(stretch, dim / (dim - 2.0));
        const float exponent = static_cast<float>(2 * i) / static_cast<float>(2 * half);
        return 1.0F / static_cast<float>(
                          std::pow(static_cast<double>(static_cast<float>(base)), static_cast<double>(exponent)));
    }
    return op.frequencies.data<float>()[row * op.frequencies.stride(0) + i * op.frequencies.stride(1)];
}

/// out = the rotation of x by the angles whose cosines and sines are given: (x[i], x[half + i]) are the pairs; what
/// lies beyond 2 · half is copied. `out` may be x itself when T is float.
template <class T>
void rotate(T* out, const float* x, const float* cosines, const float* sines, std::int64_t half, std::int64_t dim) {
    std::int64_t i = 0;
    const auto turn = [&](Vec first, Vec second, Vec cosine, Vec sine, auto&& put) {
        put(first * cosine - second * sine, second * cosine + first * sine);
    };
    for (; i + Vec::width <= half; i += Vec::width) {
        turn(load(x + i), load(x + half + i), load(cosines + i), load(sines + i), [&](Vec first, Vec second) {
            store(out + i, first);
            store(out + half + i, second);
        });
    }
    if (i < half) {
        const int rest = static_cast<int>(half - i);
        turn(load_partial(x + i, rest), load_partial(x + half + i, rest), load_partial(cosines + i, rest),
             load_partial(sines + i, rest), [&](Vec first, Vec second) {
                 store_partial(out + i, first, rest);
                 store_partial(out + half + i, second, rest);
             });
    }
    for (i = 2 * half; i < dim; ++i) from_float(x[i], out[i]);
}

template <class T>
void narrow_row(T* out, const float* x, std::int64_t n) {
    std::int64_t i = 0;
    for (; i + Vec::width <= n; i += Vec::width) store(out + i, load(x + i));
    if (i < n) store_partial(out + i, load_partial(x + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

/// Where head h of a slot lies in a cache [blocks, kv_heads, block_size, head_dim].
template <class T>
T* slot_address(const Tensor& cache, std::int64_t slot, std::int64_t h) {
    const std::int64_t block_size = cache.size(2);
    return cache.data<T>() + slot / block_size * cache.stride(0) + h * cache.stride(1) +
           slot % block_size * cache.stride(2);
}

template <class T>
void append(const RopeAppend& op, std::int64_t t, std::int64_t h, const float* cosines, const float* sines) {
    const std::int64_t slot = op.slots.data<std::int32_t>()[t * op.slots.stride(0)];
    if (slot < 0) return;
    const std::int64_t dim = op.k.size(2);
    rotate(slot_address<T>(op.key_cache, slot, h), op.k.data<float>() + t * op.k.stride(0) + h * op.k.stride(1),
           cosines, sines, op.angles.size(1) / 2, dim);
    narrow_row(slot_address<T>(op.value_cache, slot, h), op.v.data<float>() + t * op.v.stride(0) + h * op.v.stride(1),
               dim);
}

}  // namespace

void run(const RopeAngles& op, const Lane& lane) {
    const std::int64_t half = op.frequencies.size(1);
    const Range items = lane.share(op.positions.size(0) * half, 8);
    for (std::int64_t item = items.begin; item < items.end; ++item) {
        const std::int64_t t = item / half;
        const std::int64_t i = item % half;
        const std::int32_t length = op.lengths.data<std::int32_t>()[t * op.lengths.stride(0)];
        const auto position = static_cast<float>(op.positions.data<std::int32_t>()[t * op.positions.stride(0)]);
        const float angle = position * frequency_of(op, i, length);
        float* out = op.out.data<float>() + t * op.out.stride(0);
        out[i] = std::cos(angle) * op.attention_factor;
        out[half + i] = std::sin(angle) * op.attention_factor;
    }
}

void run(const RopeAppend& op, const Lane& lane) {
    const std::int64_t heads = op.q.size(1);
    const std::int64_t kv_heads = op.k.size(1);
    const std::int64_t half = op.angles.size(1) / 2;
    const Range items = lane.share(op.q.size(0) * (heads + kv_heads));
    with_float(op.key_cache.dtype(), [&]<class T>(T) {
        for (std::int64_t item = items.begin; item < items.end; ++item) {
            const std::int64_t t = item / (heads + kv_heads);
            const std::int64_t h = item % (heads + kv_heads);
            const float* cosines = op.angles.data<float>() + t * op.angles.stride(0);
            if (h < heads) {
                float* q = op.q.data<float>() + t * op.q.stride(0) + h * op.q.stride(1);
                rotate(q, q, cosines, cosines + half, half, op.q.size(2));
            } else {
                append<T>(op, t, h - heads, cosines, cosines + half);
            }
        }
    });
}

}  // namespace fermi::cpu::FERMI_ISA
