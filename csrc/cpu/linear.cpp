// out = x · [W₀; W₁; …]ᵀ + [b₀; b₁; …]
//
// Weights lie as in the checkpoint, [rows, columns], and are walked along their rows. Work is cut into items of some
// weight rows × some tokens, which lanes take as they get free. With few tokens the weights' memory is the limit: it is
// read in order, each row once, against all tokens. With many the products are: an item's x stays in the second-level
// cache while its weight rows pass by, a tile of them at a time in the first level.
//
// Where the machine multiplies pairs of bf16, bf16 weights meet activations rounded to bf16, whatever the number of
// tokens. So every product here is batch invariant, and Numerics makes no difference.
#include "cpu/kernels.h"
#include "cpu/product.h"
#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Up to this many tokens, weights are read a row at a time.
constexpr int few_tokens = 2;
/// How far ahead of a row's products its memory is asked for.
constexpr std::int64_t prefetch_bytes = 4096;
/// Bytes of x that an item works on: they stay in the second-level cache.
constexpr std::int64_t token_block_bytes = 384 << 10;
constexpr std::int64_t most_block_tokens = 256;
/// Columns after which a tile's accumulators are put aside, so that its weights stay in the first-level cache.
constexpr std::int64_t column_block = 2048;

/// The row of x in the form that Dot wants it.
template <class X>
struct Activations {
    const X* data;
    std::int64_t stride;  // elements from token to token
    const X* row(std::int64_t token) const { return data + token * stride; }
};

/// Tokens × outputs of one item; outputs count from the first row of the weight.
struct Item {
    Range tokens;
    Range outputs;
};

/// One weight of the op with what its outputs need.
template <class W>
struct Matrix {
    const W* data;
    std::int64_t stride;
    std::int64_t columns;
    const Tensor* bias;  // null: none
    float* out;          // its first output of the first token
    std::int64_t out_stride;
};

float bias_of(const Tensor* bias, std::int64_t row) {
    if (bias == nullptr) return 0.0F;
    float value = 0.0F;
    with_float(bias->dtype(), [&]<class T>(T) { value = to_float(bias->data<T>()[row * bias->stride(0)]); });
    return value;
}

/// M tokens × N outputs over columns [begin, end). Accumulators come from and go to `saved`, but for the first columns
/// and for the last ones, after which the outputs are written. ahead(w, k): see accumulate_tile.
template <class Dot, int M, int N, class W, class Ahead>
void multiply_tile(const Activations<typename Dot::X>& x, const Matrix<W>& matrix, std::int64_t token, std::int64_t row,
                   Range columns, const float (&biases)[N], Vec* saved, const Ahead& ahead) {
    Vec sums[M][N];
    set_zero(sums);
    if (columns.begin != 0) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sums[m][n] = saved[m * N + n];
        }
    }
    const W* w[N];
    for (int n = 0; n < N; ++n) w[n] = matrix.data + (row + n) * matrix.stride + columns.begin;
    accumulate_tile<Dot>(sums, x.row(token) + columns.begin, x.stride, w, columns.end - columns.begin,
                         [&](std::int64_t k) { ahead(w, k); });
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        if (columns.end == matrix.columns) {
            float results[N];
            sum_row(sums[m], results);
            float* out = matrix.out + (token + m) * matrix.out_stride + row;
            for (int n = 0; n < N; ++n) out[n] = results[n] + biases[n];
        } else {
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) saved[m * N + n] = sums[m][n];
        }
    }
}

/// N outputs for some tokens, M at a time, then fewer. The first tokens fetch the next weight rows while they multiply
/// with these.
template <class Dot, int M, int N, class W>
void multiply_tokens(const Activations<typename Dot::X>& x, const Matrix<W>& matrix, Range tokens, std::int64_t row,
                     Range columns, const float (&biases)[N], Vec* saved) {
    const std::int64_t next_rows = N > 1 ? N * matrix.stride : prefetch_bytes / static_cast<std::int64_t>(sizeof(W));
    const auto fetch = [&](const W* const(&w)[N], std::int64_t k) {
        for (int n = 0; n < N; ++n) prefetch(w[n] + k + next_rows);
    };
    const auto pass = [](const W* const(&)[N], std::int64_t) {};
    std::int64_t t = tokens.begin;
    if (t + M <= tokens.end) {
        multiply_tile<Dot, M, N>(x, matrix, t, row, columns, biases, saved, fetch);
        t += M;
        saved += M * N;
    }
    for (; t + M <= tokens.end; t += M) {
        multiply_tile<Dot, M, N>(x, matrix, t, row, columns, biases, saved, pass);
        saved += M * N;
    }
    if constexpr (M > 1) {
        if (t < tokens.end) multiply_tokens<Dot, M - 1, N>(x, matrix, {t, tokens.end}, row, columns, biases, saved);
    }
}

/// N outputs for all tokens of an item.
template <class Dot, int M, int N, class W>
void multiply_rows(const Activations<typename Dot::X>& x, const Matrix<W>& matrix, Range tokens, std::int64_t row,
                   Vec* saved) {
    float biases[N];
    for (int n = 0; n < N; ++n) biases[n] = bias_of(matrix.bias, row + n);
    // A single pass over the columns where few tokens leave nothing to keep in the first-level cache.
    const std::int64_t block = tokens.end - tokens.begin <= M ? matrix.columns : column_block;
    std::int64_t begin = 0;
    do {
        const Range columns{begin, std::min(matrix.columns, begin + block)};
        multiply_tokens<Dot, M, N>(x, matrix, tokens, row, columns, biases, saved);
        begin = columns.end;
    } while (begin < matrix.columns);
}

/// The outputs of an item, N at a time.
template <class Dot, int M, int N, class W>
void multiply_item(const Activations<typename Dot::X>& x, const Matrix<W>& matrix, const Item& item, Vec* saved) {
    std::int64_t row = item.outputs.begin;
    for (; row + N <= item.outputs.end; row += N) multiply_rows<Dot, M, N>(x, matrix, item.tokens, row, saved);
    if constexpr (N > 1) multiply_item<Dot, M, 1>(x, matrix, {item.tokens, {row, item.outputs.end}}, saved);
}

/// Whether x is rounded to bf16 for a weight of this dtype.
bool rounds_x(DType dtype) {
    static const bool usable = bf16_dot_usable();
    return usable && dtype == DType::bf16;
}

bool rounds_x(const Linear& op) {
    return std::any_of(op.weights.begin(), op.weights.end(),
                       [](const Weight& weight) { return rounds_x(weight.data.dtype()); });
}

/// Elements from row to row of the rounded x: whole cache lines.
std::int64_t rounded_stride(const Linear& op) {
    return round_up(op.x.size(1), 32);
}

std::int64_t tokens_per_item(const Linear& op) {
    const std::int64_t tokens = op.x.size(0);
    if (tokens <= few_tokens) return std::max<std::int64_t>(1, tokens);
    const auto row_bytes = std::max<std::int64_t>(1, op.x.size(1) * (rounds_x(op) ? 2 : 4));
    const std::int64_t fitting = std::clamp<std::int64_t>(token_block_bytes / row_bytes, 1, most_block_tokens);
    const std::int64_t blocks = std::max<std::int64_t>(1, (tokens + fitting - 1) / fitting);
    return round_up((tokens + blocks - 1) / blocks, tile_rows);  // equal blocks: 257 tokens are not 256 and 1
}

/// Small enough for the lanes to end together, large enough to stream.
std::int64_t outputs_per_item(const Linear& op, int lanes) {
    constexpr std::int64_t few = tile_columns, many = 24 * tile_columns;
    return std::clamp(round_up(op.out.size(1) / (8 * lanes), tile_columns), few, many);
}

/// One weight of the op and where its outputs go.
struct Part {
    const Weight& weight;
    const Tensor* bias;  // null: none
    float* out;
};

/// Calls multiply(part, item) for the items this lane gets, weight by weight; the items of the same weight rows are
/// neighbours, so that the lanes share what they read.
template <class Multiply>
void for_items(const Linear& op, const Lane& lane, const Multiply& multiply) {
    const std::int64_t tokens = op.x.size(0);
    const std::int64_t block_tokens = tokens_per_item(op);
    const std::int64_t blocks = (tokens + block_tokens - 1) / block_tokens;
    const std::int64_t outputs = outputs_per_item(op, lane.count);
    std::int64_t first = 0;  // the weight's first item
    float* out = op.out.data<float>();
    std::int64_t ticket = lane.take();
    for (std::size_t i = 0; i < op.weights.size(); ++i) {
        const Weight& weight = op.weights[i];
        const Tensor* bias = !op.biases.empty() && op.biases[i].defined() ? &op.biases[i] : nullptr;
        const std::int64_t items = (weight.rows() + outputs - 1) / outputs * blocks;
        for (; ticket < first + items; ticket = lane.take()) {
            const std::int64_t t = (ticket - first) % blocks * block_tokens;
            const std::int64_t row = (ticket - first) / blocks * outputs;
            multiply(Part{weight, bias, out},
                     Item{{t, std::min(tokens, t + block_tokens)}, {row, std::min(weight.rows(), row + outputs)}});
        }
        first += items;
        out += weight.rows();
    }
}

template <class Dot, class W>
void multiply_part(const Linear& op, const Activations<typename Dot::X>& x, const Part& part, const Item& item,
                   Vec* saved) {
    const Matrix<W> matrix{part.weight.data.data<W>(),
                           part.weight.data.stride(0),
                           part.weight.columns(),
                           part.bias,
                           part.out,
                           op.out.stride(0)};
    op.x.size(0) <= few_tokens ? multiply_item<Dot, few_tokens, 1>(x, matrix, item, saved)
                               : multiply_item<Dot, tile_rows, tile_columns>(x, matrix, item, saved);
}

/// This lane's share of x, rounded to bf16.
void round_rows(const Linear& op, const Lane& lane, bf16* to) {
    const std::int64_t columns = op.x.size(1);
    constexpr std::int64_t piece = 512;  // columns: one token occupies all lanes too
    const std::int64_t pieces = (columns + piece - 1) / piece;
    const Range items = lane.share(op.x.size(0) * pieces);
    for (std::int64_t item = items.begin; item < items.end; ++item) {
        const std::int64_t t = item / pieces;
        const std::int64_t end = std::min(columns, (item % pieces + 1) * piece);
        const float* x = op.x.data<float>() + t * op.x.stride(0);
        bf16* row = to + t * rounded_stride(op);
        std::int64_t i = item % pieces * piece;
        for (; i + Vec::width <= end; i += Vec::width) store(row + i, load(x + i));
        const int rest = static_cast<int>(end - i);
        if (rest > 0) store_partial(row + i, load_partial(x + i, rest), rest);
    }
}

}  // namespace

Scratch scratch_of(const Linear& op, int) {
    return {.shared = rounds_x(op) ? static_cast<std::size_t>(op.x.size(0) * rounded_stride(op)) * sizeof(bf16) : 0,
            .own = static_cast<std::size_t>(tokens_per_item(op) * tile_columns) * sizeof(Vec)};
}

void run(const Linear& op, const Lane& lane) {
    auto* rounded_x = reinterpret_cast<bf16*>(lane.shared);
    if (rounds_x(op)) {
        round_rows(op, lane, rounded_x);
        lane.wait();
    }
    auto* saved = reinterpret_cast<Vec*>(lane.own);
    for_items(op, lane, [&](const Part& part, const Item& item) {
        const DType dtype = part.weight.data.dtype();
        if constexpr (has_bf16_dot) {
            if (rounds_x(dtype)) {
                return multiply_part<BFloat16Dot, bf16>(op, {rounded_x, rounded_stride(op)}, part, item, saved);
            }
        }
        with_float(dtype, [&]<class W>(W) {
            multiply_part<FloatDot<W>, W>(op, {op.x.data<float>(), op.x.stride(0)}, part, item, saved);
        });
    });
}

}  // namespace fermi::cpu::FERMI_ISA
