// Rotary position embeddings (arXiv 2104.09864): angles of a step's tokens, norm and rotation of heads, append to the
// KV cache.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/norm.h"
#include "cpu/simd.h"
#include "cpu/vectors.h"

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

template <class T>
void narrow_row(T* out, const float* x, std::int64_t n) {
    for_vectors(n, [&](const auto& get, const auto& put) { put(out, get(x)); });
}

/// How the heads of a token turn; `half` is zero where they do not.
struct Turn {
    const float* cosines;
    const float* sines;
    std::int64_t half;

    Turn(const Tensor& angles, std::int64_t token) : cosines(nullptr), sines(nullptr), half(0) {
        if (!angles.defined()) return;
        half = angles.size(1) / 2;
        cosines = angles.data<float>() + token * angles.stride(0);
        sines = cosines + half;
    }
};

/// out = the rotation of x: (x[i], x[half + i]) are the pairs; what lies beyond 2 · half is copied. `out` may be x
/// itself when T is float.
template <class T>
void rotate(T* out, const float* x, const Turn& by, std::int64_t dim) {
    const float *cosines = by.cosines, *sines = by.sines;
    const std::int64_t half = by.half;
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
    if (static_cast<const void*>(out) != x) narrow_row(out + 2 * half, x + 2 * half, dim - 2 * half);
}

/// out = round(x / scale), scale = max |x| / 127; a row of zeros has scale zero.
void quantize_row(std::int8_t* out, float& scale, const float* x, std::int64_t n) {
    Vec most = zero();
    for_vectors(n, [&](const auto& get, const auto&) {
        const Vec value = get(x);
        most = maximum(most, maximum(value, zero() - value));
    });
    const float reach = largest(most);
    scale = reach / 127.0F;
    const Vec inverse = broadcast(reach > 0.0F ? 127.0F / reach : 0.0F);
    for_vectors(n, [&](const auto& get, const auto& put) {  // the bounds are for numbers that are not finite
        put(out, maximum(minimum(get(x) * inverse, broadcast(127.0F)), broadcast(-127.0F)));
    });
}

/// Head h of a token, [head_dim]; with a norm, its norm, in `room`.
const float* head_of(const RopeAppend& op, const Tensor& x, const Tensor& norm, std::int64_t t, std::int64_t h,
                     float* room) {
    const float* head = x.data<float>() + t * x.stride(0) + h * x.stride(1);
    if (!norm.defined()) return head;
    normalize(room, head, x.size(2), {norm, Tensor(), NormKind::rms, op.epsilon});
    return room;
}

/// A place in the caches: index of its row, [head_dim] elements, in them and in their scales.
std::int64_t row_of(const Tensor& cache, std::int64_t slot, std::int64_t h) {
    const std::int64_t block_size = cache.size(2);
    return (slot / block_size * cache.size(1) + h) * block_size + slot % block_size;
}

/// Writes key and value of head h of a token to their slot. `room`: [head_dim].
void append(const RopeAppend& op, std::int64_t t, std::int64_t h, const Turn& turn, float* room) {
    const std::int64_t slot = op.slots.data<std::int32_t>()[t * op.slots.stride(0)];
    if (slot < 0) return;
    const std::int64_t dim = op.k.size(2);
    const std::int64_t row = row_of(op.key_cache, slot, h);
    const float* key = head_of(op, op.k, op.k_norm, t, h, room);
    const float* value = op.v.data<float>() + t * op.v.stride(0) + h * op.v.stride(1);
    if (op.key_cache.dtype() == DType::i8) {
        rotate(room, key, turn, dim);
        quantize_row(op.key_cache.data<std::int8_t>() + row * dim, op.key_scales.data<float>()[row], room, dim);
        quantize_row(op.value_cache.data<std::int8_t>() + row * dim, op.value_scales.data<float>()[row], value, dim);
    } else {
        with_float(op.key_cache.dtype(), [&]<class T>(T) {
            rotate(op.key_cache.data<T>() + row * dim, key, turn, dim);
            narrow_row(op.value_cache.data<T>() + row * dim, value, dim);
        });
    }
}

}  // namespace

Scratch scratch_of(const RopeAppend& op, int) {
    return {.own = float_bytes(op.q.size(2))};
}

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
    const Range items = lane.share(op.q.size(0) * (heads + kv_heads));
    auto* room = reinterpret_cast<float*>(lane.own);
    for (std::int64_t item = items.begin; item < items.end; ++item) {
        const std::int64_t t = item / (heads + kv_heads);
        const std::int64_t h = item % (heads + kv_heads);
        const Turn turn(op.angles, t);
        if (h < heads) {
            float* q = op.q.data<float>() + t * op.q.stride(0) + h * op.q.stride(1);
            rotate(q, head_of(op, op.q, op.q_norm, t, h, room), turn, op.q.size(2));
        } else {
            append(op, t, h - heads, turn, room);
        }
    }
}

void run(const Rope& op, const Lane& lane) {
    const std::int64_t heads = op.x.size(1);
    const Range items = lane.share(op.x.size(0) * heads);
    for (std::int64_t item = items.begin; item < items.end; ++item) {
        const std::int64_t t = item / heads, h = item % heads;
        float* x = op.x.data<float>() + t * op.x.stride(0) + h * op.x.stride(1);
        rotate(x, x, Turn(op.angles, t), op.x.size(2));
    }
}

}  // namespace fermi::cpu::FERMI_ISA
