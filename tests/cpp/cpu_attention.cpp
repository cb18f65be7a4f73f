// Attention on every instruction set: values, windows, unread memory, and the independence of batch, chunks and
// threads.
#include <algorithm>
#include <limits>

#include "cpu_support.h"

namespace fermi::test {
namespace {

using CpuAttention = OnEachCpu;

struct Shape {
    std::int64_t heads, kv_heads, head_dim, block_size;
};

/// A cache that holds `length` positions of one sequence in scattered blocks; NaN elsewhere.
struct Context {
    Tensor keys, values, tables;

    Context(Random& random, const Shape& shape, std::int64_t length, DType dtype) {
        const std::int64_t used = (length + shape.block_size - 1) / shape.block_size;
        const std::int64_t blocks = used + 2;
        const Dims cache{blocks, shape.kv_heads, shape.block_size, shape.head_dim};
        const float nan = std::numeric_limits<float>::quiet_NaN();
        keys = Tensor::empty(dtype, cache);
        values = Tensor::empty(dtype, cache);
        for (std::int64_t i = 0; i < keys.elements(); ++i) {
            if (dtype == DType::f32) {
                keys.data<float>()[i] = values.data<float>()[i] = nan;
            } else {
                keys.data<std::uint16_t>()[i] = values.data<std::uint16_t>()[i] = 0x7fff;  // NaN in f16 and bf16
            }
        }
        std::vector<std::int32_t> table;
        for (std::int64_t b = 0; b < used; ++b) table.push_back(static_cast<std::int32_t>(blocks - 1 - b));
        table.push_back(-1);  // behind the context: never looked at
        tables = indices(table, {1, used + 1});
        for (std::int64_t position = 0; position < length; ++position) {
            for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
                for (std::int64_t d = 0; d < shape.head_dim; ++d) {
                    put(keys, at(position, h, d), coarse(random()));
                    put(values, at(position, h, d), coarse(random()));
                }
            }
        }
    }

    std::int64_t at(std::int64_t position, std::int64_t h, std::int64_t d) const {
        const std::int64_t size = keys.size(2);
        const std::int64_t block = tables.data<std::int32_t>()[position / size];
        return ((block * keys.size(1) + h) * size + position % size) * keys.size(3) + d;
    }

    /// Queries [n, heads, head_dim] at the last n positions of `length`.
    Tensor attend(const Tensor& q, std::int64_t length, std::int32_t window = 0) const {
        const auto n = static_cast<std::int32_t>(q.size(0));
        return attention(q, keys, values, tables, indices({0, n}), indices({static_cast<std::int32_t>(length)}),
                         {0.25F, window});
    }
};

/// The result of `describe`, computed on a backend batch-invariantly.
template <class Describe>
Tensor invariant(const std::shared_ptr<Backend>& backend, const Describe& describe) {
    Recording recording(backend, Numerics::batch_invariant);
    recording.open();
    const Tensor out = describe();
    recording.close();
    recording.run();
    return out;
}

/// Output element d of one query and head in double precision.
double reference(const Context& context, const Tensor& q, const Shape& shape, std::int64_t row, std::int64_t head,
                 std::int64_t first, std::int64_t position, std::int64_t d) {
    const std::int64_t kv_head = head / (shape.heads / shape.kv_heads);
    std::vector<double> scores;
    for (std::int64_t j = first; j <= position; ++j) {
        double score = 0.0;
        for (std::int64_t i = 0; i < shape.head_dim; ++i) {
            score += static_cast<double>(get(q, (row * shape.heads + head) * shape.head_dim + i)) *
                     static_cast<double>(get(context.keys, context.at(j, kv_head, i)));
        }
        scores.push_back(0.25 * score);
    }
    const double highest = *std::max_element(scores.begin(), scores.end());
    double total = 0.0, value = 0.0;
    for (std::size_t j = 0; j < scores.size(); ++j) {
        const double weight = std::exp(scores[j] - highest);
        total += weight;
        value += weight *
                 static_cast<double>(get(context.values, context.at(first + static_cast<std::int64_t>(j), kv_head, d)));
    }
    return value / total;
}

TEST_P(CpuAttention, MatchesDoublePrecision) {
    Random random(1);
    const BackendScope scope(open());
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
        for (const auto& [shape, length, queries, window] : {std::tuple(Shape{4, 2, 20, 3}, 9, 9, 0),
                                                             {Shape{3, 1, 64, 16}, 70, 2, 0},
                                                             {Shape{2, 2, 8, 5}, 600, 1, 0},
                                                             {Shape{6, 1, 36, 7}, 150, 21, 40}}) {
            // Products of bf16 pairs round queries and weights to 2⁻⁹; a few queries are multiplied in f32.
            const double tolerance = dtype == DType::bf16 && queries > 4 ? 4e-3 : 3e-6;
            const Context context(random, shape, length, dtype);
            const Tensor q = random_tensor(random, {queries, shape.heads, shape.head_dim});
            const Tensor out = context.attend(q, length, window);
            for (std::int64_t row = 0; row < queries; row += 4) {
                const std::int64_t position = length - queries + row;
                const std::int64_t first = window == 0 ? 0 : std::max<std::int64_t>(0, position + 1 - window);
                for (std::int64_t head = 0; head < shape.heads; ++head) {
                    for (std::int64_t d = 0; d < shape.head_dim; d += 7) {
                        const double expected = reference(context, q, shape, row, head, first, position, d);
                        ASSERT_NEAR(get(out, (row * shape.heads + head) * shape.head_dim + d), expected, tolerance)
                            << dtype << " length " << length << " row " << row << " head " << head << " element " << d;
                    }
                }
            }
        }
    }
}

TEST_P(CpuAttention, RowsAreIndependentOfChunksAndThreads) {
    Random random(2);
    const Shape shape{4, 1, 24, 16};
    const std::int64_t length = 1100;
    const Context context(random, shape, length, DType::bf16);
    const std::int64_t queries = 40;
    const Tensor q = random_tensor(random, {queries, shape.heads, shape.head_dim});
    for (const std::int32_t window : {0, 530}) {
        const Tensor whole = invariant(open(1), [&] { return context.attend(q, length, window); });
        for (const int threads : {2, 3}) {
            const auto backend = open(threads);
            const Tensor again = invariant(backend, [&] { return context.attend(q, length, window); });
            EXPECT_TRUE(same_bits(whole, again)) << threads << " threads";
            for (const auto& [start, count] : {std::pair<std::int64_t, std::int64_t>(0, 7), {7, 1}, {39, 1}}) {
                const Tensor rows = q.narrow(0, start, count);
                const std::int64_t end = length - queries + start + count;
                const Tensor part = invariant(backend, [&] { return context.attend(rows, end, window); });
                EXPECT_TRUE(same_bits(whole.narrow(0, start, count), part)) << threads << " threads, row " << start;
            }
        }
    }
}

TEST_P(CpuAttention, IsIndependentOfThreads) {
    Random random(3);
    const Context context(random, {4, 1, 24, 16}, 1100, DType::bf16);
    for (const std::int64_t queries : {1, 40}) {
        const Tensor q = random_tensor(random, {queries, 4, 24});
        Tensor whole;
        for (const int threads : {1, 2, 3, 8}) {
            const BackendScope scope(open(threads));
            const Tensor out = context.attend(q, 1100);
            if (threads == 1) whole = out;
            EXPECT_TRUE(same_bits(whole, out)) << threads << " threads, " << queries << " queries";
        }
    }
}

/// The rows of a cache as rope_append makes them of plain numbers.
struct Packed {
    Tensor cache, scales;

    explicit Packed(const Tensor& floats)
        : cache(Tensor::empty(DType::i8, floats.shape())),
          scales(Tensor::empty(DType::f32, {floats.size(0), floats.size(1), floats.size(2)})) {
        const std::int64_t dim = floats.size(3);
        for (std::int64_t row = 0; row < scales.elements(); ++row) {
            float most = 0.0F;
            for (std::int64_t d = 0; d < dim; ++d) most = std::max(most, std::abs(get(floats, row * dim + d)));
            scales.data<float>()[row] = most / 127.0F;
            for (std::int64_t d = 0; d < dim; ++d) {
                const float value = most > 0.0F ? get(floats, row * dim + d) / most * 127.0F : 0.0F;
                cache.data<std::int8_t>()[row * dim + d] = static_cast<std::int8_t>(std::nearbyint(value));
            }
        }
    }
    /// The numbers that it holds.
    Tensor unpacked() const {
        const Tensor floats = Tensor::empty(DType::f32, cache.shape());
        for (std::int64_t i = 0; i < cache.elements(); ++i) {
            floats.data<float>()[i] =
                static_cast<float>(cache.data<std::int8_t>()[i]) * scales.data<float>()[i / cache.size(3)];
        }
        return floats;
    }
};

TEST_P(CpuAttention, ReadsIntegers) {
    Random random(4);
    const BackendScope scope(open());
    for (const auto& [shape, queries] : {std::pair(Shape{4, 2, 20, 4}, 1),
                                         {Shape{3, 1, 64, 16}, 2},
                                         {Shape{4, 2, 36, 4}, 9},
                                         {Shape{2, 2, 96, 16}, 30}}) {
        const std::int64_t length = 5 * shape.block_size;
        const Packed keys(random_tensor(random, {6, shape.kv_heads, shape.block_size, shape.head_dim}));
        const Packed values(random_tensor(random, {6, shape.kv_heads, shape.block_size, shape.head_dim}));
        const Tensor q = random_tensor(random, {queries, shape.heads, shape.head_dim});
        const Tensor tables = indices({3, 0, 5, 1, 4}, {1, 5});
        const Tensor starts = indices({0, queries}), contexts = indices({static_cast<std::int32_t>(length)});
        const Tensor out =
            attention(q, keys.cache, values.cache, tables, starts, contexts, {0.25F}, {keys.scales, values.scales});
        const Tensor expected = attention(q, keys.unpacked(), values.unpacked(), tables, starts, contexts, {0.25F});
        for (std::int64_t i = 0; i < out.elements(); ++i) {
            ASSERT_NEAR(get(out, i), get(expected, i), queries > 4 ? 8e-3 : 3e-6) << queries << " queries, " << i;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CpuAttention, ::testing::ValuesIn(cpu_architectures()), test_name);

}  // namespace
}  // namespace fermi::test
