// The smaller ops on every instruction set: norms, rotary embedding, activations, rows, copies; recordings of them.
#include "cpu_support.h"

namespace fermi::test {
namespace {

using CpuOps = OnEachCpu;

TEST_P(CpuOps, EmbedAndGatherFetchRows) {
    Random random(1);
    const BackendScope scope(open());
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        const Tensor table = random_tensor(random, {11, 37}, dtype);
        const Tensor out = embed(indices({10, 0, 3}), Weight::dense(table));
        const Tensor again = gather_rows(out, indices({2, 2, 0, 1}));
        for (std::int64_t i = 0; i < 37; ++i) {
            EXPECT_EQ(get(out, i), get(table, 370 + i));
            EXPECT_EQ(get(out, 37 + i), get(table, i));
            EXPECT_EQ(get(again, i), get(table, 3 * 37 + i));
            EXPECT_EQ(get(again, 2 * 37 + i), get(table, 370 + i));
        }
    }
}

TEST_P(CpuOps, RmsNormMatchesDoublePrecision) {
    Random random(2);
    const BackendScope scope(open());
    for (const std::int64_t dim : {1, 7, 64, 201}) {
        const Tensor x = random_tensor(random, {5, dim});
        const Tensor weight = random_tensor(random, {dim}, DType::bf16);
        const Tensor out = rms_norm(x, weight, 1e-5F);
        for (std::int64_t t = 0; t < 5; ++t) {
            double squares = 0.0;
            for (std::int64_t i = 0; i < dim; ++i) squares += std::pow(static_cast<double>(get(x, t * dim + i)), 2.0);
            const double scale = 1.0 / std::sqrt(squares / static_cast<double>(dim) + 1e-5);
            for (std::int64_t i = 0; i < dim; ++i) {
                const double expected =
                    static_cast<double>(get(x, t * dim + i)) * scale * static_cast<double>(get(weight, i));
                EXPECT_NEAR(get(out, t * dim + i), expected, 1e-6 * (1.0 + std::abs(expected)));
            }
        }
    }
}

TEST_P(CpuOps, LayerNormMatchesDoublePrecision) {
    Random random(8);
    const BackendScope scope(open());
    for (const std::int64_t dim : {1, 7, 64, 201}) {
        const Tensor x = random_tensor(random, {5, dim});
        const Tensor weight = random_tensor(random, {dim}, DType::f16);
        const Tensor bias = random_tensor(random, {dim}, DType::bf16);
        const Tensor residual = random_tensor(random, {5, dim});
        const Tensor before = clone(residual);
        layer_norm(x, weight, bias, 1e-3F, residual);
        for (std::int64_t t = 0; t < 5; ++t) {
            const auto value = [&](std::int64_t i) { return static_cast<double>(get(x, t * dim + i)); };
            const auto n = static_cast<double>(dim);
            double mean = 0.0, variance = 0.0;
            for (std::int64_t i = 0; i < dim; ++i) mean += value(i) / n;
            for (std::int64_t i = 0; i < dim; ++i) variance += std::pow(value(i) - mean, 2.0) / n;
            for (std::int64_t i = 0; i < dim; ++i) {
                const double expected =
                    (value(i) - mean) / std::sqrt(variance + 1e-3) * static_cast<double>(get(weight, i)) +
                    static_cast<double>(get(bias, i)) + static_cast<double>(get(before, t * dim + i));
                EXPECT_NEAR(get(residual, t * dim + i), expected, 3e-6);
            }
        }
    }
}

TEST_P(CpuOps, PoolsMatchTheirFormulas) {
    Random random(9);
    const BackendScope scope(open(3));
    const std::int64_t dim = 150;
    const std::vector<std::int32_t> starts{0, 1, 1, 12};
    const Tensor x = random_tensor(random, {12, dim});
    const auto check = [&](Pooling pooling, auto add, auto divide) {
        const Tensor out = pool(x, indices(starts), pooling);
        for (std::size_t s = 0; s + 1 < starts.size(); ++s) {
            const std::int64_t length = starts[s + 1] - starts[s];
            for (std::int64_t i = 0; i < dim; ++i) {
                double expected = 0.0;
                for (std::int64_t t = 0; t < length; ++t) {
                    expected = add(expected, static_cast<double>(get(x, (starts[s] + t) * dim + i)), t);
                }
                if (length > 0) expected /= divide(static_cast<double>(length));
                EXPECT_NEAR(get(out, static_cast<std::int64_t>(s) * dim + i), expected, 2e-6);
            }
        }
    };
    const auto sum = [](double total, double value, std::int64_t) { return total + value; };
    check(Pooling::mean, sum, [](double n) { return n; });
    check(Pooling::mean_sqrt_length, sum, [](double n) { return std::sqrt(n); });
    check(
        Pooling::weighted_mean,
        [](double total, double value, std::int64_t t) { return total + static_cast<double>(t + 1) * value; },
        [](double n) { return n * (n + 1.0) / 2.0; });
    check(
        Pooling::max, [](double most, double value, std::int64_t t) { return t == 0 ? value : std::max(most, value); },
        [](double) { return 1.0; });
}

TEST_P(CpuOps, RmsNormOfHeadsTakesViews) {
    Random random(3);
    const BackendScope scope(open());
    const Tensor wide = random_tensor(random, {3, 50});
    const Tensor heads = wide.narrow(1, 5, 40).unflatten(1, {4, 10});
    const Tensor weight = random_tensor(random, {10});
    const Tensor out = rms_norm(heads, weight, 1e-6F);
    Tensor packed = Tensor::empty(DType::f32, {3, 4, 10});
    copy(packed, heads);
    EXPECT_TRUE(same_bits(out, rms_norm(packed, weight, 1e-6F)));
}

TEST_P(CpuOps, ActivationsMatchTheirFormulas) {
    const BackendScope scope(open());
    const std::int64_t n = 331;
    // One column: an output is the input times its weight.
    const Tensor weight = Tensor::empty(DType::f32, {n, 1});
    for (std::int64_t i = 0; i < n; ++i) put(weight, i, static_cast<float>(i - n / 2));
    const Tensor x = Tensor::empty(DType::f32, {2, 1});
    put(x, 0, 0.0625F);
    put(x, 1, 3.0F);
    const auto check = [&](Activation activation, auto formula) {
        const Tensor out = linear(x, {Weight::dense(weight)}, {}, {.activation = activation});
        for (std::int64_t t = 0; t < 2; ++t) {
            for (std::int64_t i = 0; i < n; ++i) {
                const double value = static_cast<double>(get(x, t)) * static_cast<double>(get(weight, i));
                ASSERT_NEAR(get(out, t * n + i), formula(value), 5e-7 * (1.0 + std::abs(value))) << "of " << value;
            }
        }
    };
    check(Activation::silu, [](double v) { return v / (1.0 + std::exp(-v)); });
    check(Activation::gelu, [](double v) { return 0.5 * v * (1.0 + std::erf(v / std::sqrt(2.0))); });
    check(Activation::gelu_tanh, [](double v) {
        return 0.5 * v * (1.0 + std::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (v + 0.044715 * v * v * v)));
    });
    check(Activation::relu, [](double v) { return v > 0.0 ? v : 0.0; });
    check(Activation::tanh, [](double v) { return std::tanh(v); });
    check(Activation::sigmoid, [](double v) { return 1.0 / (1.0 + std::exp(-v)); });
}

TEST_P(CpuOps, RopeTurnsPairsAndAppends) {
    Random random(4);
    const BackendScope scope(open());
    const std::int64_t tokens = 3, heads = 2, kv_heads = 1, dim = 22, half = 9, block_size = 4;
    Tensor frequencies = Tensor::empty(DType::f32, {1, half});
    for (std::int64_t i = 0; i < half; ++i) put(frequencies, i, std::pow(10.0F, -static_cast<float>(i) / half));
    const Tensor angles =
        rope_angles(indices({0, 5, 1000}), indices({1, 6, 1001}), frequencies, {.attention_factor = 2.0F});
    const Tensor q = random_tensor(random, {tokens, heads, dim});
    const Tensor k = random_tensor(random, {tokens, kv_heads, dim});
    const Tensor v = random_tensor(random, {tokens, kv_heads, dim});
    const Tensor before = clone(q);
    const Tensor keys = filled({3, kv_heads, block_size, dim}, 0.0F);
    const Tensor values = filled({3, kv_heads, block_size, dim}, 0.0F);
    rope_append(q, k, v, angles, indices({9, -1, 2}), keys, values);
    const auto expected = [&](const Tensor& x, std::int64_t row, std::int64_t t, std::int64_t i) {
        const float* from = x.data<float>() + row * dim;
        if (i >= 2 * half) return static_cast<double>(from[i]);
        const std::int64_t pair = i % half;
        const double position = t == 0 ? 0.0 : t == 1 ? 5.0 : 1000.0;
        const float angle = static_cast<float>(position) * get(frequencies, pair);
        const double cosine = 2.0 * std::cos(static_cast<double>(angle)),
                     sine = 2.0 * std::sin(static_cast<double>(angle));
        const double first = static_cast<double>(from[pair]), second = static_cast<double>(from[half + pair]);
        return i < half ? first * cosine - second * sine : second * cosine + first * sine;
    };
    for (std::int64_t i = 0; i < dim; ++i) {
        for (std::int64_t row = 0; row < tokens * heads; ++row) {
            EXPECT_NEAR(get(q, row * dim + i), expected(before, row, row / heads, i), 1e-6);
        }
        EXPECT_NEAR(get(keys, 9 * dim + i), expected(k, 0, 0, i), 1e-6);
        EXPECT_NEAR(get(keys, 2 * dim + i), expected(k, 2, 2, i), 1e-6);
        EXPECT_EQ(get(values, 9 * dim + i), get(v, i));
        EXPECT_EQ(get(values, 2 * dim + i), get(v, 2 * dim + i));
        EXPECT_EQ(get(keys, 5 * dim + i), 0.0F);
    }
    const Tensor alone = clone(before);
    rope(alone, angles);
    EXPECT_TRUE(same_bits(alone, q));
}

TEST_P(CpuOps, CopyConvertsAndFollowsStrides) {
    Random random(5);
    const BackendScope scope(open());
    const Tensor source = random_tensor(random, {3, 4, 21});
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        const Tensor there = Tensor::empty(dtype, {4, 3, 21});
        const Tensor back = Tensor::empty(DType::f32, {3, 4, 21});
        copy(there.transpose(0, 1), source);
        copy(back, there.transpose(0, 1));
        EXPECT_TRUE(same_bits(back, source)) << dtype;
        const Tensor turned = Tensor::empty(DType::f32, {21, 4, 3});
        copy(turned.transpose(0, 2), source);
        EXPECT_EQ(get(turned, 5 * 12 + 2 * 3 + 1), get(source, 1 * 84 + 2 * 21 + 5));
    }
}

TEST_P(CpuOps, RecordingEqualsEager) {
    Random random(6);
    const auto backend = open(3);
    const Tensor ids = indices({1, 4, 2, 2, 0});
    const Weight table = Weight::dense(random_tensor(random, {6, 48}, DType::bf16));
    const Weight gate = Weight::dense(random_tensor(random, {40, 48}, DType::bf16));
    const Tensor norm = random_tensor(random, {48});
    const auto describe = [&] {
        const Tensor x = embed(ids, table);
        const Tensor h = linear(x, {gate, gate}, {}, {.norm = {norm, 1e-6F}, .activation = Activation::silu});
        return linear(h, {Weight::dense(random_tensor(random, {7, 40}))});
    };
    Tensor eager;
    {
        const BackendScope scope(backend);
        random = Random(7);
        eager = describe();
    }
    random = Random(7);
    Recording recording(backend);
    recording.open();
    const Tensor recorded = describe();
    recording.close();
    for (int i = 0; i < 3; ++i) {
        recording.run();
        EXPECT_TRUE(same_bits(recorded, eager));
    }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuOps, ::testing::ValuesIn(cpu_architectures()), test_name);

}  // namespace
}  // namespace fermi::test
