// One vector of each sequence's tokens.
#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/vectors.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Columns that are pooled together: accumulators that stay in registers.
constexpr int pool_vectors = 4;
constexpr std::int64_t pool_columns = pool_vectors * Vec::width;

/// By what the sum of so many tokens' vectors is divided.
float divisor_of(Pooling pooling, std::int64_t length) {
    const auto n = static_cast<double>(length);
    switch (pooling) {
        case Pooling::max:
            return 1.0F;
        case Pooling::mean:
            return static_cast<float>(n);
        case Pooling::mean_sqrt_length:
            return static_cast<float>(std::sqrt(n));
        case Pooling::weighted_mean:
            return static_cast<float>(n * (n + 1.0) / 2.0);
    }
    return 1.0F;
}

/// What a token's values become part of. `position` counts from 1.
Vec take(Pooling pooling, Vec pooled, Vec value, std::int64_t position) {
    switch (pooling) {
        case Pooling::max:
            return position == 1 ? value : maximum(pooled, value);
        case Pooling::weighted_mean:
            return fma(broadcast(static_cast<float>(position)), value, pooled);
        case Pooling::mean:
        case Pooling::mean_sqrt_length:
            return pooled + value;
    }
    return pooled;
}

/// Some columns of a sequence, at most pool_columns, its tokens one after the other.
template <Pooling pooling>
void pool_some(float* out, const float* x, std::int64_t stride, std::int64_t length, std::int64_t columns) {
    Vec pooled[pool_vectors];
    for (Vec& each : pooled) each = zero();
    for (std::int64_t i = 0; i < length; ++i) {
        const float* token = x + i * stride;
        if (columns == pool_columns) {
#pragma GCC unroll 8
            for (int v = 0; v < pool_vectors; ++v) {
                pooled[v] = take(pooling, pooled[v], load(token + v * Vec::width), i + 1);
            }
        } else {
            Vec* each = pooled;
            for_vectors(columns, [&](const auto& get, const auto&) {
                *each = take(pooling, *each, get(token), i + 1);
                ++each;
            });
        }
    }
    const Vec divisor = broadcast(divisor_of(pooling, std::max<std::int64_t>(1, length)));
    const Vec* each = pooled;
    for_vectors(columns, [&](const auto&, const auto& put) { put(out, *each++ / divisor); });
}

template <Pooling pooling>
void pool_share(const Pool& op, const Lane& lane) {
    const std::int64_t dim = op.x.size(1), blocks = (dim + pool_columns - 1) / pool_columns;
    const Range items = lane.share(op.out.size(0) * blocks);
    for (std::int64_t item = items.begin; item < items.end; ++item) {
        const std::int64_t s = item / blocks, column = item % blocks * pool_columns;
        const std::int32_t* starts = op.starts.data<std::int32_t>() + s * op.starts.stride(0);
        const std::int64_t begin = starts[0], end = starts[op.starts.stride(0)];
        pool_some<pooling>(op.out.data<float>() + s * op.out.stride(0) + column,
                           op.x.data<float>() + begin * op.x.stride(0) + column, op.x.stride(0), end - begin,
                           std::min(pool_columns, dim - column));
    }
}

}  // namespace

void run(const Pool& op, const Lane& lane) {
    switch (op.pooling) {
        case Pooling::mean:
            return pool_share<Pooling::mean>(op, lane);
        case Pooling::max:
            return pool_share<Pooling::max>(op, lane);
        case Pooling::mean_sqrt_length:
            return pool_share<Pooling::mean_sqrt_length>(op, lane);
        case Pooling::weighted_mean:
            return pool_share<Pooling::weighted_mean>(op, lane);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
