// Packs matrices: for each row and group of columns a search for the scale that loses least, then integers in strips.
//
// A group of a strip is turned so that its sixteen rows lie side by side. Each lane of a vector is then a row, and what
// a row gets depends neither on the width of vectors nor on the number of threads: the same bits on every machine.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// A group of columns of a strip.
struct Group {
    float* values;            // [columns, strip_rows]; rows that there are not hold zeros
    const float* importance;  // [columns], or null
    std::int64_t columns;
};

/// Levels, the whole numbers that a scale multiplies.
struct Levels {
    Vec lowest;
    Vec highest;
};

struct Scale {
    Vec value;
    Vec inverse;  // zero where the value is
};

// The magnitude of a scale that is not zero: finite, and with an inverse.
template <class T>
constexpr float least_scale = std::numeric_limits<float>::min();
template <>
constexpr float least_scale<f16> = 0x1p-24F;
template <class T>
constexpr float greatest_scale = std::numeric_limits<float>::max();
template <>
constexpr float greatest_scale<f16> = 65504.0F;

FERMI_INLINE Vec magnitude(Vec a) {
    return maximum(a, zero() - a);
}

/// A scale as T holds it. Zero stays zero, and what is poisoned is not a number.
template <class T>
FERMI_INLINE Scale scale_of(Vec wanted, Vec poison) {
    const Vec size = magnitude(wanted);
    const Vec bounded = minimum(maximum(size, broadcast(least_scale<T>)), broadcast(greatest_scale<T>));
    const Vec signed_bounded = select_less(wanted, zero(), zero() - bounded, bounded);
    T stored[Vec::width];
    store(stored, select_less(zero(), size, signed_bounded, zero()) + poison);
    const Vec value = load(stored);
    return {value, select_less(zero(), magnitude(value), broadcast(1.0F) / value, zero())};
}

FERMI_INLINE Vec level_of(Vec w, Vec inverse, const Levels& levels) {
    return round_even(minimum(maximum(w * inverse, levels.lowest), levels.highest));
}

template <bool weighted>
FERMI_INLINE Vec add_term(Vec sum, Vec term, const Group& group, std::int64_t column) {
    if constexpr (weighted) return sum + broadcast(group.importance[column]) * term;
    return sum + term;
}

/// The squared errors of some scales.
template <bool weighted, int count>
FERMI_INLINE void measure(const Group& group, int row, const Levels& levels, const Scale (&scales)[count],
                          Vec (&errors)[count]) {
    Vec sums[count];
    for (Vec& each : sums) each = zero();
    for (std::int64_t c = 0; c < group.columns; ++c) {
        const Vec w = load(group.values + c * strip_rows + row);
        for (int i = 0; i < count; ++i) {
            const Vec error = w - level_of(w, scales[i].inverse, levels) * scales[i].value;
            sums[i] = add_term<weighted>(sums[i], error * error, group, c);
        }
    }
    for (int i = 0; i < count; ++i) errors[i] = sums[i];
}

/// The scale with the least error for the levels that `scale` gives: Σ w · level / Σ level².
template <bool weighted, class T>
FERMI_INLINE Scale fitted(const Group& group, int row, const Levels& levels, const Scale& scale, Vec poison) {
    Vec products = zero(), squares = zero();
    for (std::int64_t c = 0; c < group.columns; ++c) {
        const Vec w = load(group.values + c * strip_rows + row);
        const Vec level = level_of(w, scale.inverse, levels);
        products = add_term<weighted>(products, w * level, group, c);
        squares = add_term<weighted>(squares, level * level, group, c);
    }
    return scale_of<T>(select_less(zero(), squares, products / squares, scale.value), poison);
}

/// What candidate i of n, neither the first nor the last, divides the first by: from a little less than one, since the
/// first is not the best there, to where a third of the range is clipped in favour of finer steps.
float divisor(int i, int n) {
    return 0.875F + 0.625F * static_cast<float>(i - 1) / static_cast<float>(std::max(1, n - 3));
}

/// Of `candidates` scales the one with the least error: the first, its parts, and what fits the best of these.
template <bool weighted, class T>
FERMI_INLINE Scale best_scale(const Group& group, int row, const Levels& levels, Vec first, Vec poison,
                              int candidates) {
    Scale best[1] = {scale_of<T>(first, poison)};
    if (candidates == 1) return best[0];
    Vec least[1];
    measure<weighted>(group, row, levels, best, least);
    const auto consider = [&](const Scale& scale, Vec error) {
        best[0] = {select_less(error, least[0], scale.value, best[0].value),
                   select_less(error, least[0], scale.inverse, best[0].inverse)};
        least[0] = minimum(error, least[0]);
    };
    constexpr int together = 4;  // sums that need not wait for each other
    for (int i = 1; i < candidates - 1; i += together) {
        Scale scales[together];
        Vec errors[together];
        for (int j = 0; j < together; ++j) {
            const int candidate = std::min(i + j, candidates - 2);
            scales[j] = scale_of<T>(first / broadcast(divisor(candidate, candidates)), poison);
        }
        measure<weighted>(group, row, levels, scales, errors);
        for (int j = 0; j < together; ++j) consider(scales[j], errors[j]);
    }
    const Scale last[1] = {fitted<weighted, T>(group, row, levels, best[0], poison)};
    Vec error[1];
    measure<weighted>(group, row, levels, last, error);
    consider(last[0], error[0]);
    return best[0];
}

/// What the elements of each row span.
struct Extremes {
    Vec largest = zero();  // in magnitude, with its sign; the first of several
    Vec low = zero();      // at most zero
    Vec high = zero();     // at least zero
    Vec poison = zero();   // not a number where an element is infinite or none
};

FERMI_INLINE Extremes extremes_of(const Group& group, int row) {
    Extremes found;
    for (std::int64_t c = 0; c < group.columns; ++c) {
        const Vec w = load(group.values + c * strip_rows + row);
        found.largest = select_less(magnitude(found.largest), magnitude(w), w, found.largest);
        found.low = minimum(w, found.low);
        found.high = maximum(w, found.high);
        found.poison = found.poison + w * zero();
    }
    return found;
}

/// Where a group's scales and zeros go: [strip_rows] each.
template <class T>
struct Places {
    T* scales;
    std::uint8_t* zeros;  // null where symmetric
};

/// Finds scales and zeros of Vec::width rows, and puts their integers, as the low bytes of floats, in their values'
/// place.
template <bool weighted, class T>
void quantize_rows(const Quantize& op, const Group& group, int row, const Places<T>& places) {
    const Extremes found = extremes_of(group, row);
    Levels levels{broadcast(-127.0F), broadcast(127.0F)};
    Vec first = magnitude(found.largest) / broadcast(127.0F);
    Vec zero_point = zero();
    if (places.zeros != nullptr) {
        first = (found.high - found.low) / broadcast(15.0F);
        const Levels positive{zero(), broadcast(15.0F)};
        zero_point = level_of(zero() - found.low, scale_of<T>(first, found.poison).inverse, positive);
        levels = {zero() - zero_point, broadcast(15.0F) - zero_point};
        float lanes[Vec::width];
        store(lanes, zero_point);
        for (int i = 0; i < Vec::width; ++i) places.zeros[row + i] = static_cast<std::uint8_t>(lanes[i]);
    } else if (op.out.format == WeightFormat::int4) {
        first = found.largest / broadcast(-8.0F);  // the largest takes level -8, since there is no level 8
        zero_point = broadcast(8.0F);
        levels = {broadcast(-8.0F), broadcast(7.0F)};
    }
    const Scale scale = best_scale<weighted, T>(group, row, levels, first, found.poison, op.candidates);
    store(places.scales + row, scale.value);
    const Vec to_low_byte = broadcast(0x1.8p23F);
    for (std::int64_t c = 0; c < group.columns; ++c) {
        float* value = group.values + c * strip_rows + row;
        store(value, level_of(load(value), scale.inverse, levels) + zero_point + to_low_byte);
    }
}

/// Columns that lie side by side in a word of packed data.
constexpr int columns_of_word(WeightFormat format) {
    return format == WeightFormat::int8 ? 4 : 8;
}

/// The columns of a group as the op's groups go from one to the next.
std::int64_t group_columns(const Quantize& op) {
    return op.out.group() == 0 ? op.out.columns() : op.out.group();
}

/// values[c, r] = x[r, c] for some rows; the rest of the strip holds zeros.
template <class X>
void turn(const X* x, std::int64_t stride, std::int64_t rows, std::int64_t columns, float* values) {
    constexpr std::int64_t piece = 64;  // columns whose values stay in the first cache
    for (std::int64_t begin = 0; begin < columns; begin += piece) {
        const std::int64_t end = std::min(columns, begin + piece);
        for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t c = begin; c < end; ++c) values[c * strip_rows + r] = to_float(x[r * stride + c]);
        }
        for (std::int64_t r = rows; r < strip_rows; ++r) {
            for (std::int64_t c = begin; c < end; ++c) values[c * strip_rows + r] = 0.0F;
        }
    }
}

/// Packs low bytes of `words · count` columns: one byte each, or two columns to a byte. Rows that there are not get
/// zeros.
template <int count>
void pack(const float* values, std::int64_t words, std::int64_t rows, std::byte* out) {
    for (std::int64_t i = 0; i < words; ++i) {
        std::uint32_t packed[strip_rows] = {};
        for (int column = 0; column < count; ++column) {
            const float* from = values + (i * count + column) * strip_rows;
            const int shift = 8 * (column % 4) + 4 * (column / 4);
            for (int r = 0; r < strip_rows; ++r) {
                packed[r] |= (std::bit_cast<std::uint32_t>(from[r]) & 0xffU) << shift;
            }
        }
        for (std::int64_t r = rows; r < strip_rows; ++r) packed[r] = 0;
        std::memcpy(out + i * static_cast<std::int64_t>(sizeof packed), packed, sizeof packed);
    }
}

template <class T, class X>
void quantize_strip(const Quantize& op, std::int64_t strip, float* values) {
    const Weight& out = op.out;
    const std::int64_t rows = std::min(strip_rows, out.rows() - strip * strip_rows);
    const std::int64_t columns = out.columns(), size = group_columns(op), groups = out.scales.size(1);
    const int together = columns_of_word(out.format);
    const float* importance = op.importance.defined() ? op.importance.data<float>() : nullptr;
    const X* x = op.x.data<X>() + strip * strip_rows * op.x.stride(0);
    auto* data = out.data.bytes_data() + strip * out.data.size(1) * strip_rows * 4;
    for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t begin = g * size, present = std::min(columns, begin + size) - begin;
        const std::int64_t words = (present + together - 1) / together;
        turn(x + begin, op.x.stride(0), rows, present, values);
        std::fill(values + present * strip_rows, values + words * together * strip_rows, 0.0F);
        const Group group{values, importance == nullptr ? nullptr : importance + begin, present};
        const std::int64_t place = (strip * groups + g) * strip_rows;
        const Places<T> places{out.scales.data<T>() + place,
                               out.zeros.defined() ? out.zeros.data<std::uint8_t>() + place : nullptr};
        for (int row = 0; row < strip_rows; row += Vec::width) {
            importance == nullptr ? quantize_rows<false>(op, group, row, places)
                                  : quantize_rows<true>(op, group, row, places);
        }
        auto* to = data + begin / together * strip_rows * 4;
        together == 4 ? pack<4>(values, words, rows, to) : pack<8>(values, words, rows, to);
    }
}

}  // namespace

Scratch scratch_of(const Quantize& op, int) {
    const std::int64_t columns = round_up(std::min(group_columns(op), op.out.columns()), 8);
    return {.own = float_bytes(columns * strip_rows)};
}

void run(const Quantize& op, const Lane& lane) {
    const std::int64_t strips = op.out.data.size(0);
    auto* values = reinterpret_cast<float*>(lane.own);
    const auto quantize_strips = [&]<class T>(T) {
        with_float(op.x.dtype(), [&]<class X>(X) {
            for (std::int64_t strip = lane.take(); strip < strips; strip = lane.take()) {
                quantize_strip<T, X>(op, strip, values);
            }
        });
    };
    op.out.scales.dtype() == DType::f16 ? quantize_strips(f16{}) : quantize_strips(float{});
}

}  // namespace fermi::cpu::FERMI_ISA
