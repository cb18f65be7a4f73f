// Linear on every instruction set: values, views, and the independence of rows and threads.
#include "cpu_support.h"

namespace fermi::test {
namespace {

using CpuLinear = OnEachCpu;

/// x · wᵀ + bias in double precision.
double reference(const Tensor& x, const Tensor& w, const Tensor& bias, std::int64_t t, std::int64_t row) {
    const std::int64_t columns = w.size(1);
    double sum = bias.defined() ? static_cast<double>(get(bias, row)) : 0.0;
    for (std::int64_t k = 0; k < columns; ++k) {
        sum += static_cast<double>(get(x, t * columns + k)) * static_cast<double>(get(w, row * columns + k));
    }
    return sum;
}

struct Shape {
    std::int64_t tokens, columns, rows, more_rows;
};

TEST_P(CpuLinear, MatchesDoublePrecision) {
    Random random(1);
    const BackendScope scope(open());
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        for (const Shape& shape :
             {Shape{1, 5, 3, 1}, {2, 16, 7, 4}, {7, 67, 13, 25}, {8, 33, 6, 1}, {11, 100, 9, 30}, {70, 2100, 7, 2}}) {
            const Tensor x = random_tensor(random, {shape.tokens, shape.columns});
            const Tensor first = random_tensor(random, {shape.rows, shape.columns}, dtype);
            const Tensor second = random_tensor(random, {shape.more_rows, shape.columns}, dtype);
            const Tensor bias = random_tensor(random, {shape.more_rows}, dtype);
            const Tensor out = linear(x, {Weight::dense(first), Weight::dense(second)}, {Tensor(), bias});
            ASSERT_EQ(out.shape(), Dims({shape.tokens, shape.rows + shape.more_rows}));
            const double tolerance = 1e-6 * static_cast<double>(shape.columns) + 1e-6;
            for (std::int64_t t = 0; t < shape.tokens; ++t) {
                for (std::int64_t row = 0; row < out.size(1); ++row) {
                    const double expected = row < shape.rows ? reference(x, first, Tensor(), t, row)
                                                             : reference(x, second, bias, t, row - shape.rows);
                    ASSERT_NEAR(get(out, t * out.size(1) + row), expected, tolerance)
                        << dtype << " token " << t << " row " << row << " of " << shape.columns << " columns";
                }
            }
        }
    }
}

TEST_P(CpuLinear, ScalesAndCapsBeforeItAdds) {
    Random random(3);
    const BackendScope scope(open());
    const Tensor x = random_tensor(random, {3, 70});
    const Tensor w = random_tensor(random, {19, 70});
    const Tensor residual = random_tensor(random, {3, 19});
    const Tensor before = clone(residual);
    linear(x, {Weight::dense(w)}, {}, {.scale = -0.5F, .soft_cap = 2.0F, .residual = residual});
    for (std::int64_t t = 0; t < 3; ++t) {
        for (std::int64_t row = 0; row < 19; ++row) {
            const double capped = 2.0 * std::tanh(-0.25 * reference(x, w, Tensor(), t, row));
            const double expected = static_cast<double>(get(before, t * 19 + row)) + capped;
            EXPECT_NEAR(get(residual, t * 19 + row), expected, 2e-5);
        }
    }
}

TEST_P(CpuLinear, TakesRowsOfAWeight) {
    Random random(4);
    const BackendScope scope(open());
    const Tensor x = random_tensor(random, {3, 70});
    const Tensor w = random_tensor(random, {40, 70});
    const auto same = [&](const Weight& weight, std::int64_t first, std::int64_t rows) {
        const Tensor whole = linear(x, {weight});
        Tensor expected = Tensor::empty(DType::f32, {3, rows});
        copy(expected, whole.narrow(1, first, rows));
        return same_bits(linear(x, {weight.narrow(first, rows)}), expected);
    };
    EXPECT_TRUE(same(Weight::dense(w), 3, 21));
    const Weight packed = quantize(w, {.format = WeightFormat::int4, .group = 32, .symmetric = false});
    EXPECT_TRUE(same(packed, 16, 16));
    EXPECT_TRUE(same(packed, 16, 24));
    EXPECT_THROW(packed.narrow(8, 16), InvalidArgument);
    EXPECT_THROW(packed.narrow(0, 24), InvalidArgument);
    EXPECT_THROW(packed.narrow(32, 9), InvalidArgument);
    EXPECT_THROW(Weight::dense(w).narrow(-1, 2), InvalidArgument);
}

/// The rows of one run, described under `numerics`.
Tensor run_linear(const std::shared_ptr<Backend>& backend, const Tensor& x, const Tensor& w, Numerics numerics) {
    Recording recording(backend, numerics);
    recording.open();
    const Tensor out = linear(x, {Weight::dense(w)});
    recording.close();
    recording.run();
    return clone(out);
}

TEST_P(CpuLinear, RowsAreIndependentOfOtherRowsAndThreads) {
    Random random(2);
    const std::int64_t tokens = 37, columns = 4133, rows = 29;  // more columns than are kept in one pass
    for (const auto& [dtype, numerics] : {std::pair(DType::f32, Numerics::fast),
                                          {DType::f16, Numerics::batch_invariant},
                                          {DType::bf16, Numerics::batch_invariant}}) {
        const Tensor w = random_tensor(random, {rows, columns}, dtype);
        Tensor x = Tensor::empty(DType::f32, {tokens, columns});
        for (std::int64_t i = 0; i < x.elements(); ++i) x.data<float>()[i] = random();
        const Tensor all = run_linear(open(3), x, w, numerics);
        for (const auto& [start, count] : {std::pair<std::int64_t, std::int64_t>(0, 1), {5, 3}, {9, 8}, {20, 17}}) {
            const Tensor some = run_linear(open(1), x.narrow(0, start, count), w, numerics);
            EXPECT_TRUE(same_bits(all.narrow(0, start, count), some)) << dtype << " rows from " << start;
        }
    }
}

TEST_P(CpuLinear, TakesStridedRows) {
    Random random(3);
    const BackendScope scope(open());
    const Tensor wide = random_tensor(random, {5, 50});
    const Tensor w = random_tensor(random, {9, 20}, DType::bf16);
    const Tensor part = wide.narrow(1, 13, 20);
    Tensor packed = Tensor::empty(DType::f32, {5, 20});
    copy(packed, part);
    EXPECT_TRUE(same_bits(linear(part, {Weight::dense(w)}), linear(packed, {Weight::dense(w)})));
}

TEST_P(CpuLinear, EqualWeightRowsGiveEqualBits) {
    // Whatever tile a row falls into: full, left over, of the second weight.
    Random random(4);
    const BackendScope scope(open());
    const std::int64_t columns = 123, rows = 53;
    Tensor w = Tensor::empty(DType::f32, {rows, columns});
    for (std::int64_t i = 0; i < w.elements(); ++i)
        w.data<float>()[i] = i < columns ? random() : w.data<float>()[i - columns];
    Tensor x = Tensor::empty(DType::f32, {5, columns});
    for (std::int64_t i = 0; i < x.elements(); ++i) x.data<float>()[i] = random();
    const Tensor out = linear(x, {Weight::dense(w), Weight::dense(w.narrow(0, 0, 3))});
    for (std::int64_t t = 0; t < 5; ++t) {
        for (std::int64_t row = 1; row < out.size(1); ++row) {
            ASSERT_EQ(get(out, t * out.size(1) + row), get(out, t * out.size(1))) << "token " << t << " row " << row;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuLinear, ::testing::ValuesIn(cpu_architectures()), test_name);

}  // namespace
}  // namespace fermi::test
