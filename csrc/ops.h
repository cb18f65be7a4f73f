// The vocabulary: one struct per op, plain data; one function per op that checks, allocates the output and dispatches.
//
// A function called while a recording is open on this thread appends its op to it; otherwise the op runs at once.
// Activations are f32. Every tensor of an op lies on one device. Index tensors are i32; on the CPU their values are
// checked before each run (index_checks.h), kernels follow them unchecked.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string_view>
#include <variant>
#include <vector>

#include "export.h"
#include "tensor.h"
#include "weight.h"

namespace fermi {

/// `fast` may choose another kernel, hence another order of summation, by the number of rows; `batch_invariant` may
/// not.
enum class Numerics : std::uint8_t { fast, batch_invariant };

enum class Activation : std::uint8_t { silu, gelu, gelu_tanh, relu, tanh, sigmoid };

/// Over the last dimension, each with a weight and perhaps a bias:
///   rms    x / sqrt(mean(x²) + epsilon) (arXiv 1910.07467)
///   layer  (x - mean(x)) / sqrt(variance(x) + epsilon) (arXiv 1607.06450)
enum class NormKind : std::uint8_t { rms, layer };

/// What becomes of the vectors of a sequence's tokens; mean_sqrt_length: their sum / sqrt(length); weighted_mean: each
/// weighted by its position, counted from 1.
enum class Pooling : std::uint8_t { mean, max, mean_sqrt_length, weighted_mean };

/// What makes weights of a router's logits, over all experts.
enum class Scoring : std::uint8_t { softmax, sigmoid };

/// How rotary frequencies depend on the length of the sequence a token belongs to (see RopeAngles).
enum class RopeRule : std::uint8_t {
    fixed,        ///< one row of frequencies
    dynamic_ntk,  ///< base grows with length beyond the original context ("NTK-aware dynamic scaling")
    longrope,     ///< row 0 up to the original context, row 1 beyond (arXiv 2402.13753)
};

/// Rows of an embedding table: out[t] = scale · table[token_ids[t]]; with `add`, out[t] += that.
struct Embed {
    static constexpr std::string_view name = "embed";
    Tensor out;        // f32 [tokens, hidden]
    Tensor token_ids;  // i32 [tokens]
    Weight table;      // [vocabulary, hidden]
    float scale;
    bool add;
};

/// out = norm(x) over the last dimension; with `add`, out += norm(x): out is the residual stream.
struct Norm {
    static constexpr std::string_view name = "norm";
    Tensor out;     // f32, shape of x
    Tensor x;       // f32 [.., dim], rank 2 or 3, last dimension contiguous
    Tensor weight;  // float [dim]
    Tensor bias;    // float [dim], or undefined
    NormKind kind;
    float epsilon;
    bool add;
};

/// y = norm(x) · [W₀; W₁; …]ᵀ + [b₀; b₁; …]: one or several weights that share an input, their outputs side by
/// side, with what surrounds a product in a model, so that no pass over activations stands alone.
///   norm        undefined: x is taken as it is
///   activation  one weight: activation(y); two weights of equal rows: activation(y₀) · y₁ (arXiv 2002.05202)
///   scale       times that
///   soft_cap    soft_cap · tanh(that / soft_cap), where soft_cap is not 0
///   add         out += that: out is the residual stream
/// Packed weights meet x rounded to int8, with a scale for each token and group of columns (128 where the weight has
/// none); their results are the same bits whatever the number of tokens. Dense weights meet f32; where the machine
/// multiplies pairs of bf16, `fast` lets bf16 weights meet x rounded to bf16 for many tokens, and for few of them x
/// split into two bf16, which is exact to 2^-17.
struct Linear {
    static constexpr std::string_view name = "linear";
    Tensor out;                   // f32 [tokens, Σ rows], or [tokens, rows] of a gate
    Tensor x;                     // f32 [tokens, columns], rows contiguous, any row stride
    std::vector<Weight> weights;  // each [rows, columns]; packed: all of one format and group
    std::vector<Tensor> biases;   // empty, or one per weight: float [rows] or undefined
    Tensor norm;                  // the norm's weight: undefined, or float [columns]
    Tensor norm_bias;             // undefined, or float [columns]
    NormKind norm_kind;
    float epsilon;  // of the norm
    std::optional<Activation> activation;
    float scale;
    float soft_cap;
    bool add;
    Numerics numerics;
};

/// The rotation of each token: out[t] = (cos(θ), sin(θ)) · attention_factor with θ[i] = positions[t] · frequency[i].
/// Once per step; every layer's rope reads it. `lengths[t]` is the sequence length for which token t's frequencies
/// are chosen: dynamic_ntk and longrope depend on it, `fixed` does not.
struct RopeAngles {
    static constexpr std::string_view name = "rope_angles";
    Tensor out;          // f32 [tokens, 2 · half]: half cosines, then half sines
    Tensor positions;    // i32 [tokens]
    Tensor lengths;      // i32 [tokens]
    Tensor frequencies;  // f32 [1 or 2, half]
    RopeRule rule;
    float attention_factor;        // multiplies cosines and sines (yarn, longrope)
    float base;                    // dynamic_ntk: θ of the unscaled model
    float factor;                  // dynamic_ntk: scaling factor
    std::int32_t original_length;  // dynamic_ntk, longrope: the context the model was trained on
};

/// Rotates queries in place and writes rotated keys, and values, to their slots of the KV cache (arXiv 2104.09864, the
/// half-split form of Hugging Face checkpoints). The first 2·half elements of a head turn, the rest stay. With norms,
/// each query's and key's head is rms_norm'ed before it turns.
///
/// An i8 cache holds each head's row x as round(x / scale), to even, with scale = max |x| / 127 beside it.
struct RopeAppend {
    static constexpr std::string_view name = "rope_append";
    Tensor q;            // f32 [tokens, heads, head_dim], updated in place, head_dim contiguous
    Tensor k;            // f32 [tokens, kv_heads, head_dim], head_dim contiguous
    Tensor v;            // f32 [tokens, kv_heads, head_dim], head_dim contiguous
    Tensor angles;       // f32 [tokens, 2 · half], 2 · half ≤ head_dim; undefined: nothing turns
    Tensor slots;        // i32 [tokens]: block · block_size + offset; negative: not stored
    Tensor key_cache;    // float or i8 [blocks, kv_heads, block_size, head_dim], contiguous
    Tensor value_cache;  // as key_cache
    Tensor key_scales;   // of an i8 cache: f32 [blocks, kv_heads, block_size], contiguous; else undefined
    Tensor value_scales;
    Tensor q_norm;  // float [head_dim], or undefined, as k_norm is then
    Tensor k_norm;
    float epsilon;  // of the norms
};

/// Rotates heads in place, as RopeAppend does.
struct Rope {
    static constexpr std::string_view name = "rope";
    Tensor x;       // f32 [tokens, heads, head_dim], updated in place, head_dim contiguous
    Tensor angles;  // f32 [tokens, 2 · half], 2 · half ≤ head_dim
};

/// Causal grouped-query attention of a ragged batch of queries over the paged KV cache.
/// query_starts rise from 0 to the number of tokens; block tables must be valid only where keys are read.
/// Query j of sequence s (row query_starts[s] + j of n queries) sits at position context_lengths[s] - n + j and sees
/// the keys at positions ≤ its own and, with a window, > its own - window. A row's bits never depend on the other
/// sequences or on the number of threads. With `batch_invariant` they do not depend on the other queries of its own
/// sequence either; `fast` computes longer chunks another way than a few queries, with bf16 and i8 caches in products
/// of bf16 pairs where the machine has them.
struct Attention {
    static constexpr std::string_view name = "attention";
    Tensor out;              // f32 [tokens, heads · head_dim]
    Tensor q;                // f32 [tokens, heads, head_dim], head_dim contiguous
    Tensor key_cache;        // float or i8 [blocks, kv_heads, block_size, head_dim], contiguous
    Tensor value_cache;      // as key_cache
    Tensor key_scales;       // of an i8 cache (see RopeAppend), else undefined
    Tensor value_scales;     // as key_scales
    Tensor block_tables;     // i32 [sequences, max_blocks]
    Tensor query_starts;     // i32 [sequences + 1]
    Tensor context_lengths;  // i32 [sequences], this step's tokens included
    float scale;
    float soft_cap;       // scores are soft_cap · tanh(scale · q·k / soft_cap), where it is not 0
    std::int32_t window;  // keys a query sees, itself included; 0: all
    Numerics numerics;
};

/// Grouped-query attention in which every token of a sequence sees all others, before and after it, without a cache.
/// The tokens of all sequences follow each other without padding. A row's bits depend on its own sequence only.
struct EncoderAttention {
    static constexpr std::string_view name = "encoder_attention";
    Tensor out;     // f32 [tokens, heads · head_dim]
    Tensor q;       // f32 [tokens, heads, head_dim], head_dim contiguous
    Tensor k;       // f32 [tokens, kv_heads, head_dim], head_dim contiguous
    Tensor v;       // as k
    Tensor starts;  // i32 [sequences + 1]: rise from 0 to tokens
    Tensor bias;    // f32 [heads, 2 · reach + 1], contiguous, or undefined: what is added to the score of query i and
                    // key j of a sequence is bias[head, clamp(j - i, -reach, reach) + reach]
    float scale;
    std::int32_t window;  // the farthest that a query sees, before and after it: |j - i| ≤ window; 0: everything
    Numerics numerics;
};

/// One vector of each sequence's tokens; an empty sequence gives zeros.
struct Pool {
    static constexpr std::string_view name = "pool";
    Tensor out;     // f32 [sequences, dim]
    Tensor x;       // f32 [tokens, dim], dim contiguous
    Tensor starts;  // i32 [sequences + 1]: rise from 0 to tokens
    Pooling pooling;
};

/// The experts of each token: the k largest of its scores, in falling order, the first of equal ones first; their
/// weights are those scores, divided by their sum where they are normalized, times `scale`.
struct Route {
    static constexpr std::string_view name = "route";
    Tensor experts;  // i32 [tokens, k]
    Tensor weights;  // f32 [tokens, k]
    Tensor logits;   // f32 [tokens, experts], rows contiguous
    Scoring scoring;
    bool normalize;
    float scale;
};

/// Linear with an expert's own weights for each token; only the weights of experts in use are read.
///   spread   route_weights undefined: out[t · k + i] = activation(x[t] · W[experts[t, i]]ᵀ)
///   combine  route_weights defined:   out[t] += Σᵢ route_weights[t, i] · (x[t · k + i] · W[experts[t, i]]ᵀ), in order
/// With two matrices for each expert the activation is a gate, activation(x · W₀ᵀ) · (x · W₁ᵀ). What is said of dense
/// and packed weights at Linear holds, for the number of tokens: which experts the others choose changes no bit of a
/// row.
struct ExpertLinear {
    static constexpr std::string_view name = "expert_linear";
    Tensor out;                   // f32 [tokens · k, rows], or [tokens, rows] to which is added
    Tensor x;                     // f32 [tokens, columns], or [tokens · k, columns]; rows contiguous
    Tensor experts;               // i32 [tokens, k], contiguous
    Tensor route_weights;         // f32 [tokens, k], contiguous, or undefined
    std::vector<Weight> weights;  // one or two for each expert, expert by expert, all alike in shape and format
    std::int64_t matrices;        // of each expert: 1 or 2
    std::optional<Activation> activation;
    Numerics numerics;
};

/// out[i] = x[rows[i]].
struct GatherRows {
    static constexpr std::string_view name = "gather_rows";
    Tensor out;   // f32 [n, dim]
    Tensor x;     // f32 [tokens, dim]
    Tensor rows;  // i32 [n]
};

/// destination = source, elementwise over equal shapes; converts between float dtypes.
struct Copy {
    static constexpr std::string_view name = "copy";
    Tensor destination;
    Tensor source;
};

/// out ≈ x, packed: of `candidates` scales for each row and group, the one with the least squared error, weighted by
/// the column's importance. One candidate: the scale that reaches the largest element.
struct Quantize {
    static constexpr std::string_view name = "quantize";
    Weight out;         // packed
    Tensor x;           // float [rows, columns], rows contiguous
    Tensor importance;  // f32 [columns], or undefined: all the same
    int candidates;
};

using Op = std::variant<Embed, Norm, Linear, RopeAngles, RopeAppend, Rope, Attention, EncoderAttention, Pool, Route,
                        ExpertLinear, GatherRows, Copy, Quantize>;

/// What an op must move and do at the least, from shapes and, where they matter, from the values of lengths.
struct Cost {
    std::uint64_t bytes = 0;       ///< read + written, each operand once
    std::uint64_t operations = 0;  ///< multiply-adds count as two
};

FERMI_API Cost cost_of(const Op& op);
FERMI_API std::string_view name_of(const Op& op);
/// One line: name, outputs, inputs, scalars.
FERMI_API std::ostream& operator<<(std::ostream& stream, const Op& op);

/// Calls `visitor(Tensor&)` for each tensor of the op, a weight's parts included.
FERMI_API void strip_leases(Op& op);

// The front doors. Each throws InvalidArgument naming the op and what does not fit.
/// `residual`: what the result is added to, in place; then it is returned.
FERMI_API Tensor embed(const Tensor& token_ids, const Weight& table, float scale = 1.0F, const Tensor& residual = {});

/// A norm's parameters.
struct Normalization {
    Tensor weight{};
    float epsilon = 0.0F;
    NormKind kind = NormKind::rms;
    Tensor bias{};
};
FERMI_API Tensor norm(const Tensor& x, const Normalization& how, const Tensor& residual = {});
inline Tensor rms_norm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& residual = {}) {
    return norm(x, {weight, epsilon}, residual);
}
inline Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon,
                         const Tensor& residual = {}) {
    return norm(x, {weight, epsilon, NormKind::layer, bias}, residual);
}

/// What a linear does besides the product (see Linear).
struct Surroundings {
    Normalization norm{};
    std::optional<Activation> activation{};
    float scale = 1.0F;
    float soft_cap = 0.0F;
    Tensor residual{};  ///< updated in place, and returned
};
FERMI_API Tensor linear(const Tensor& x, std::vector<Weight> weights, std::vector<Tensor> biases = {},
                        Surroundings around = {});

struct RopeScaling {
    RopeRule rule = RopeRule::fixed;
    float attention_factor = 1.0F;
    float base = 0.0F;
    float factor = 1.0F;
    std::int32_t original_length = 0;
};
FERMI_API Tensor rope_angles(const Tensor& positions, const Tensor& lengths, const Tensor& frequencies,
                             const RopeScaling& scaling = {});
/// Scales of an i8 cache: f32 [blocks, kv_heads, block_size]; undefined for a float cache.
struct CacheScales {
    Tensor keys{};
    Tensor values{};
};
/// Norms of each query's and key's head, float [head_dim]; undefined where there are none.
struct HeadNorms {
    Tensor q{};
    Tensor k{};
    float epsilon = 0.0F;
};
FERMI_API void rope_append(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& angles, const Tensor& slots,
                           const Tensor& key_cache, const Tensor& value_cache, const CacheScales& scales = {},
                           const HeadNorms& norms = {});
/// How scores are made of products.
struct Scores {
    float scale = 1.0F;
    std::int32_t window = 0;
    float soft_cap = 0.0F;
};
FERMI_API void rope(const Tensor& x, const Tensor& angles);
FERMI_API Tensor attention(const Tensor& q, const Tensor& key_cache, const Tensor& value_cache,
                           const Tensor& block_tables, const Tensor& query_starts, const Tensor& context_lengths,
                           const Scores& scores, const CacheScales& scales = {});
FERMI_API Tensor encoder_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& starts,
                                   const Scores& scores, const Tensor& bias = {});
FERMI_API Tensor pool(const Tensor& x, const Tensor& starts, Pooling pooling);

struct Routes {
    Tensor experts;
    Tensor weights;
};
FERMI_API Routes route(const Tensor& logits, std::int64_t k, Scoring scoring = Scoring::softmax, bool normalize = true,
                       float scale = 1.0F);
/// `weights`: of each expert, one or two. With `route_weights` and `residual`, both or none, the results are combined.
FERMI_API Tensor expert_linear(const Tensor& x, const std::vector<std::vector<Weight>>& weights, const Tensor& experts,
                               std::optional<Activation> activation = {}, const Tensor& route_weights = {},
                               const Tensor& residual = {});
FERMI_API Tensor gather_rows(const Tensor& x, const Tensor& rows);
FERMI_API void copy(const Tensor& destination, const Tensor& source);

/// How `quantize` packs (see Weight and Quantize).
struct Packing {
    WeightFormat format = WeightFormat::int8;
    std::int64_t group = 0;
    bool symmetric = true;
    DType scales = DType::f16;
    int candidates = 1;
};
FERMI_API Weight quantize(const Tensor& x, const Packing& packing, const Tensor& importance = {});

}  // namespace fermi
