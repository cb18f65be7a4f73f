// What the tests of CPU kernels share: every instruction set of the machine, tensors of small random numbers, and the
// exact values of 16-bit floats.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend.h"
#include "ops.h"
#include "recording.h"
#include "tensor.h"

namespace fermi::test {

/// Numbers in (-1, 1), the same in every run.
class Random {
  public:
    explicit Random(unsigned seed) : engine_(seed) {}
    float operator()() { return static_cast<float>(engine_() >> 8) * 0x1p-23F - 1.0F; }
    int below(int limit) { return static_cast<int>(engine_() % static_cast<unsigned>(limit)); }

  private:
    std::mt19937 engine_;
};

/// Rounded to what a bf16 or f16 can hold with a few bits to spare, so that every dtype holds the same numbers exactly;
/// zeros are positive.
inline float coarse(float value) {
    return std::round(value * 64.0F) / 64.0F + 0.0F;
}

/// The bits of a coarse number in a 16-bit float; coarse numbers need no rounding.
inline std::uint16_t bits_of(float value, DType dtype) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (dtype == DType::bf16) return static_cast<std::uint16_t>(bits >> 16);
    const std::uint32_t sign = (bits >> 16) & 0x8000U;
    const std::uint32_t magnitude = bits & 0x7fffffffU;
    return static_cast<std::uint16_t>(sign | (magnitude == 0 ? 0U : (magnitude >> 13) - (112U << 10)));
}

inline float value_of(std::uint16_t bits, DType dtype) {
    if (dtype == DType::bf16) return std::bit_cast<float>(std::uint32_t{bits} << 16);
    const std::uint32_t magnitude = bits & 0x7fffU;
    const float value = std::bit_cast<float>((magnitude << 13)) * 0x1p112F;
    return (bits & 0x8000U) != 0 ? -value : value;
}

inline void put(const Tensor& tensor, std::int64_t index, float value) {
    if (tensor.dtype() == DType::f32) {
        tensor.data<float>()[index] = value;
    } else {
        tensor.data<std::uint16_t>()[index] = bits_of(value, tensor.dtype());
    }
}

/// Element of a contiguous tensor.
inline float get(const Tensor& tensor, std::int64_t index) {
    return tensor.dtype() == DType::f32 ? tensor.data<float>()[index]
                                        : value_of(tensor.data<std::uint16_t>()[index], tensor.dtype());
}

inline Tensor random_tensor(Random& random, const Dims& shape, DType dtype = DType::f32) {
    Tensor tensor = Tensor::empty(dtype, shape);
    for (std::int64_t i = 0; i < tensor.elements(); ++i) put(tensor, i, coarse(random()));
    return tensor;
}

inline Tensor filled(const Dims& shape, float value, DType dtype = DType::f32) {
    Tensor tensor = Tensor::empty(dtype, shape);
    for (std::int64_t i = 0; i < tensor.elements(); ++i) put(tensor, i, value);
    return tensor;
}

inline Tensor indices(const std::vector<std::int32_t>& values, Dims shape = {}) {
    if (shape.rank() == 0) shape = {static_cast<std::int64_t>(values.size())};
    Tensor tensor = Tensor::empty(DType::i32, shape);
    std::memcpy(tensor.bytes_data(), values.data(), values.size() * sizeof(std::int32_t));
    return tensor;
}

/// A copy of the same numbers.
inline Tensor clone(const Tensor& tensor) {
    Tensor result = Tensor::empty(tensor.dtype(), tensor.shape());
    std::memcpy(result.bytes_data(), tensor.bytes_data(), tensor.bytes());
    return result;
}

/// Contiguous f32 tensors, bit for bit.
inline ::testing::AssertionResult same_bits(const Tensor& a, const Tensor& b) {
    for (std::int64_t i = 0; i < a.elements(); ++i) {
        const float x = a.data<float>()[i], y = b.data<float>()[i];
        if (std::memcmp(&x, &y, sizeof x) != 0) {
            return ::testing::AssertionFailure() << "element " << i << ": " << x << " is not " << y;
        }
    }
    return ::testing::AssertionSuccess();
}

/// Tests run once per instruction set of this machine.
class OnEachCpu : public ::testing::TestWithParam<std::string> {
  protected:
    static std::shared_ptr<Backend> open(int threads = 2) {
        return open_backend(Device{}, {.index = 0, .threads = threads}, GetParam());
    }
};

inline std::string test_name(const ::testing::TestParamInfo<std::string>& info) {
    return info.param;
}

}  // namespace fermi::test
