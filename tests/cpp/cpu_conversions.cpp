// Conversions between float dtypes on every instruction set, against conversions by arithmetic.
#include <limits>

#include "cpu_support.h"

namespace fermi::test {
namespace {

using CpuConversions = OnEachCpu;

/// The value of 16 bits of an f16 or bf16 by the definition of their fields.
double defined_value(std::uint16_t bits, DType dtype) {
    const int fraction_bits = dtype == DType::f16 ? 10 : 7;
    const int bias = dtype == DType::f16 ? 15 : 127;
    const int exponent = (bits & 0x7fff) >> fraction_bits;
    const int fraction = bits & ((1 << fraction_bits) - 1);
    const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
    if (exponent == 2 * bias + 1) {
        return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                             : sign * std::numeric_limits<double>::infinity();
    }
    return exponent == 0 ? sign * std::ldexp(fraction, 1 - bias - fraction_bits)
                         : sign * std::ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

Tensor all_bits(DType dtype) {
    Tensor tensor = Tensor::empty(dtype, {1 << 16});
    for (int i = 0; i < 1 << 16; ++i) tensor.data<std::uint16_t>()[i] = static_cast<std::uint16_t>(i);
    return tensor;
}

TEST_P(CpuConversions, EveryShortFloatWidensToItsValue) {
    const BackendScope scope(open());
    for (const DType dtype : {DType::f16, DType::bf16}) {
        const Tensor wide = Tensor::empty(DType::f32, {1 << 16});
        copy(wide, all_bits(dtype));
        for (int i = 0; i < 1 << 16; ++i) {
            const double expected = defined_value(static_cast<std::uint16_t>(i), dtype);
            const double value = static_cast<double>(wide.data<float>()[i]);
            ASSERT_TRUE(value == expected || (std::isnan(value) && std::isnan(expected))) << dtype << " bits " << i;
            ASSERT_EQ(std::signbit(value), (i & 0x8000) != 0);
        }
    }
}

TEST_P(CpuConversions, NarrowsToNearestEven) {
    const BackendScope scope(open());
    for (const DType dtype : {DType::f16, DType::bf16}) {
        const auto infinity = static_cast<std::uint16_t>(dtype == DType::f16 ? 0x7c00 : 0x7f80);
        // Between every two neighbours: the lower one, a little below the middle, the middle, a little above it.
        const Tensor wide = Tensor::empty(DType::f32, {infinity, 4});
        for (int i = 0; i < infinity; ++i) {
            const double low = defined_value(static_cast<std::uint16_t>(i), dtype);
            // The step above the largest number is as wide as the one below it.
            const double high = i + 1 < infinity ? defined_value(static_cast<std::uint16_t>(i + 1), dtype)
                                                 : 2.0 * low - defined_value(static_cast<std::uint16_t>(i - 1), dtype);
            const float middle = static_cast<float>((low + high) / 2.0);
            float* row = wide.data<float>() + 4 * i;
            row[0] = static_cast<float>(low);
            row[1] = std::nextafter(middle, 0.0F);
            row[2] = middle;
            row[3] = std::nextafter(middle, std::numeric_limits<float>::infinity());
        }
        const Tensor narrow = Tensor::empty(dtype, {infinity, 4});
        copy(narrow, wide);
        for (int i = 0; i < infinity; ++i) {
            const std::uint16_t* row = narrow.data<std::uint16_t>() + 4 * i;
            ASSERT_EQ(row[0], i) << dtype;
            ASSERT_EQ(row[1], i) << dtype;
            ASSERT_EQ(row[2], i % 2 == 0 ? i : i + 1) << dtype << " ties to even";
            ASSERT_EQ(row[3], i + 1) << dtype;
        }
    }
}

TEST_P(CpuConversions, KeepsNaNAndInfinity) {
    const BackendScope scope(open());
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const Tensor wide = filled({40}, -infinity);
    for (std::int64_t i = 0; i < 40; i += 3) wide.data<float>()[i] = std::numeric_limits<float>::quiet_NaN();
    for (const DType dtype : {DType::f16, DType::bf16}) {
        const Tensor narrow = Tensor::empty(dtype, {40});
        const Tensor back = Tensor::empty(DType::f32, {40});
        copy(narrow, wide);
        copy(back, narrow);
        for (std::int64_t i = 0; i < 40; ++i) {
            if (i % 3 == 0) {
                EXPECT_TRUE(std::isnan(get(back, i)));
            } else {
                EXPECT_EQ(get(back, i), -infinity);
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuConversions, ::testing::ValuesIn(cpu_architectures()), test_name);

}  // namespace
}  // namespace fermi::test
