// The front doors: check, allocate the output, then append to the open recording or run at once.
#include "ops.h"

#include <cmath>
#include <string_view>
#include <utility>

#include "backend.h"
#include "index_checks.h"
#include "operands.h"
#include "overlap.h"
#include "recording.h"

namespace fermi {
namespace {

/// The checks that ops share, each message starting with the op's name.
class FrontDoor {
  public:
    explicit FrontDoor(std::string_view op) : op_(op) {}

    template <class... Parts>
    void expect(bool condition, Parts&&... parts) const {
        require(condition, op_, ": ", std::forward<Parts>(parts)...);
    }

    void defined(std::string_view name, const Tensor& tensor) const {
        expect(tensor.defined(), name, " is not a tensor");
    }

    void shaped(std::string_view name, const Tensor& tensor, DType dtype, int rank, std::string_view shape) const {
        defined(name, tensor);
        expect(tensor.dtype() == dtype && tensor.rank() == rank, name, " must be ", dtype, " ", shape, ", not ",
               tensor);
    }

    /// i32, the last axis contiguous.
    void indices(std::string_view name, const Tensor& tensor, int rank, std::string_view shape) const {
        shaped(name, tensor, DType::i32, rank, shape);
        rows_contiguous(name, tensor);
    }

    /// f32, the last axis contiguous.
    void activations(std::string_view name, const Tensor& tensor, int rank, std::string_view shape) const {
        shaped(name, tensor, DType::f32, rank, shape);
        rows_contiguous(name, tensor);
    }

    /// A float vector of `size` contiguous elements.
    void vector(std::string_view name, const Tensor& tensor, std::int64_t size) const {
        defined(name, tensor);
        expect(is_float(tensor.dtype()) && tensor.rank() == 1, name, " must be f32, f16 or bf16 [", size, "], not ",
               tensor);
        expect(tensor.size(0) == size, name, " has ", tensor.size(0), " elements, it must have ", size);
        expect(tensor.contiguous(), name, " is not contiguous");
    }

    void weight(std::string_view name, const Weight& weight) const {
        const Tensor& data = weight.data;
        defined(name, data);
        if (weight.format != WeightFormat::dense) return;  // checked when it was packed
        expect(is_float(data.dtype()) && data.rank() == 2, name, " must be f32, f16 or bf16 [rows, columns], not ",
               data);
        rows_contiguous(name, data);
    }

    void rows_contiguous(std::string_view name, const Tensor& tensor) const {
        expect(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, name, ": the last dimension must be contiguous, ",
               tensor.shape(), " has strides ", tensor.strides());
    }

    void same_size(std::string_view name, const Tensor& tensor, int axis, std::string_view other_name,
                   const Tensor& other, int other_axis) const {
        expect(tensor.size(axis) == other.size(other_axis), name, " ", tensor.shape(), " and ", other_name, " ",
               other.shape(), " do not fit: ", tensor.size(axis), " and ", other.size(other_axis));
    }

    /// Written by the op: writable, every element at its own address.
    void destination(std::string_view name, const Tensor& tensor) const {
        expect(tensor.writable(), name, " is read-only");
        expect(!overlaps_itself(tensor), name, ": elements share memory, ", tensor.shape(), " has strides ",
               tensor.strides());
    }

    void apart(std::string_view name, const Tensor& tensor, std::string_view other_name, const Tensor& other) const {
        expect(!overlap(tensor, other), name, " and ", other_name, " share memory");
    }

    /// The weight and perhaps the bias of a norm over `size` elements.
    void normalization(std::string_view name, const Normalization& how, std::int64_t size) const {
        vector(name, how.weight, size);
        if (how.bias.defined()) vector("the norm's bias", how.bias, size);
        finite("epsilon", how.epsilon);
    }

    /// What a result of this shape is added to.
    void residual(const Tensor& tensor, const Dims& shape) const {
        activations("residual", tensor, shape.rank(), "of the result's shape");
        expect(tensor.shape() == shape, "residual must be ", shape, ", not ", tensor.shape());
        destination("residual", tensor);
    }

    void finite(std::string_view name, float value) const {
        expect(std::isfinite(value), name, " must be finite, not ", value);
    }

  private:
    std::string_view op_;
};

/// Memory for an output on the device of `like`.
Tensor allocate(const Tensor& like, DType dtype, const Dims& shape) {
    if (Recording* recording = Recording::current()) return recording->allocate(dtype, shape);
    return {current_backend(like.device()).allocate(contiguous_bytes(dtype, shape)), dtype, shape,
            contiguous_strides(shape), 0};
}

void run_now(const Op& op) {
    Device device;
    bool first = true;
    visit_operands(op, [&](std::string_view name, const Tensor& tensor, Access) {
        if (!tensor.defined()) return;
        if (std::exchange(first, false)) device = tensor.device();
        require(tensor.device() == device, name_of(op), ": ", name, " is on ", tensor.device(), ", not on ", device);
        require(tensor.storage()->data() != nullptr || tensor.elements() == 0, name_of(op), ": ", name,
                " belongs to a recording that is not closed");
    });
    IndexChecks checks;
    checks.add(op);
    checks.run();
    current_backend(device).launch(op);
}

/// What the open recording asks for.
Numerics current_numerics() {
    const Recording* recording = Recording::current();
    return recording != nullptr ? recording->numerics() : Numerics::fast;
}

void dispatch(Op op) {
    if (Recording* recording = Recording::current()) {
        recording->append(std::move(op));
    } else {
        run_now(op);
    }
}

}  // namespace

std::string_view name_of(const Op& op) {
    return std::visit([](const auto& each) { return each.name; }, op);
}

void strip_leases(Op& op) {
    visit_operands(op, [](std::string_view, Tensor& tensor, Access) { tensor = tensor.without_lease(); });
}

Tensor embed(const Tensor& token_ids, const Weight& table, float scale, const Tensor& residual) {
    const FrontDoor door(Embed::name);
    door.indices("token_ids", token_ids, 1, "[tokens]");
    door.weight("table", table);
    door.finite("scale", scale);
    const Dims shape{token_ids.size(0), table.columns()};
    if (residual.defined()) {
        door.residual(residual, shape);
        door.apart("residual", residual, "table", table.data);
    }
    Tensor out = residual.defined() ? residual : allocate(token_ids, DType::f32, shape);
    dispatch(Embed{out, token_ids, table, scale, residual.defined()});
    return out;
}

Tensor norm(const Tensor& x, const Normalization& how, const Tensor& residual) {
    const FrontDoor door(Norm::name);
    door.defined("x", x);
    door.expect(x.dtype() == DType::f32 && (x.rank() == 2 || x.rank() == 3),
                "x must be f32 [.., dim] of rank 2 or 3, not ", x);
    door.rows_contiguous("x", x);
    door.normalization("weight", how, x.size(-1));
    if (residual.defined()) {
        door.residual(residual, x.shape());
        door.apart("residual", residual, "x", x);
        door.apart("residual", residual, "weight", how.weight);
        if (how.bias.defined()) door.apart("residual", residual, "bias", how.bias);
    }
    Tensor out = residual.defined() ? residual : allocate(x, DType::f32, x.shape());
    dispatch(Norm{out, x, how.weight, how.bias, how.kind, how.epsilon, residual.defined()});
    return out;
}

namespace {

/// The rows of a linear's output for each token. Weights must fit x, each other and the activation.
std::int64_t check_weights(const FrontDoor& door, const Tensor& x, const std::vector<Weight>& weights,
                           const std::vector<Tensor>& biases, bool activated) {
    door.expect(!weights.empty(), "there is no weight");
    door.expect(biases.empty() || biases.size() == weights.size(), biases.size(), " biases for ", weights.size(),
                " weights");
    std::int64_t rows = 0;
    for (const Weight& weight : weights) {
        door.weight("weight", weight);
        door.expect(weight.columns() == x.size(1), "weight ", weight, " has ", weight.columns(), " columns, x ",
                    x.shape(), " has ", x.size(1));
        door.expect(weight.format == weights[0].format && weight.group() == weights[0].group(), "weights ", weights[0],
                    " and ", weight, " differ in format or group");
        rows += weight.rows();
    }
    for (std::size_t i = 0; i < biases.size(); ++i) {
        if (biases[i].defined()) door.vector("bias", biases[i], weights[i].rows());
    }
    if (!activated || weights.size() == 1) return rows;
    door.expect(weights.size() == 2 && weights[0].rows() == weights[1].rows(),
                "an activation takes one weight, or two of equal rows");
    return weights[0].rows();
}

}  // namespace

Tensor linear(const Tensor& x, std::vector<Weight> weights, std::vector<Tensor> biases, Surroundings around) {
    const FrontDoor door(Linear::name);
    door.activations("x", x, 2, "[tokens, columns]");
    const std::int64_t rows = check_weights(door, x, weights, biases, around.activation.has_value());
    const Normalization& norm = around.norm;
    if (norm.weight.defined()) door.normalization("norm", norm, x.size(1));
    door.expect(norm.weight.defined() || !norm.bias.defined(), "a norm's bias must come with its weight");
    door.finite("scale", around.scale);
    door.expect(std::isfinite(around.soft_cap) && around.soft_cap >= 0, "soft_cap must not be negative, it is ",
                around.soft_cap);
    const bool add = around.residual.defined();
    if (add) {
        const Tensor& residual = around.residual;
        door.residual(residual, {x.size(0), rows});
        door.apart("residual", residual, "x", x);
        if (norm.weight.defined()) door.apart("residual", residual, "norm", norm.weight);
        if (norm.bias.defined()) door.apart("residual", residual, "the norm's bias", norm.bias);
        for (const Weight& weight : weights) door.apart("residual", residual, "weight", weight.data);
        for (const Tensor& bias : biases) {
            if (bias.defined()) door.apart("residual", residual, "bias", bias);
        }
    }
    Tensor out = add ? around.residual : allocate(x, DType::f32, {x.size(0), rows});
    dispatch(Linear{out, x, std::move(weights), std::move(biases), norm.weight, norm.bias, norm.kind, norm.epsilon,
                    around.activation, around.scale, around.soft_cap, add, current_numerics()});
    return out;
}

Tensor rope_angles(const Tensor& positions, const Tensor& lengths, const Tensor& frequencies,
                   const RopeScaling& scaling) {
    const FrontDoor door(RopeAngles::name);
    door.indices("positions", positions, 1, "[tokens]");
    door.indices("lengths", lengths, 1, "[tokens]");
    door.same_size("lengths", lengths, 0, "positions", positions, 0);
    door.activations("frequencies", frequencies, 2, "[1 or 2, half]");
    const std::int64_t rows = scaling.rule == RopeRule::longrope ? 2 : 1;
    door.expect(frequencies.size(0) == rows, "this rule needs frequencies [", rows, ", half], not ",
                frequencies.shape());
    door.finite("attention_factor", scaling.attention_factor);
    if (scaling.rule != RopeRule::fixed) {
        door.expect(scaling.original_length > 0, "original_length must be positive, not ", scaling.original_length);
    }
    if (scaling.rule == RopeRule::dynamic_ntk) {
        door.expect(std::isfinite(scaling.base) && scaling.base > 0, "base must be positive, not ", scaling.base);
        door.expect(std::isfinite(scaling.factor) && scaling.factor >= 1, "factor must be at least 1, not ",
                    scaling.factor);
        door.expect(frequencies.size(1) >= 2, "dynamic_ntk needs at least 2 frequencies, not ", frequencies.size(1));
    }
    Tensor out = allocate(positions, DType::f32, {positions.size(0), 2 * frequencies.size(1)});
    dispatch(RopeAngles{out, positions, lengths, frequencies, scaling.rule, scaling.attention_factor, scaling.base,
                        scaling.factor, scaling.original_length});
    return out;
}

namespace {

void check_angles(const FrontDoor& door, const Tensor& angles, std::string_view name, const Tensor& heads) {
    door.activations("angles", angles, 2, "[tokens, 2 * half]");
    door.same_size("angles", angles, 0, name, heads, 0);
    door.expect(angles.size(1) % 2 == 0 && angles.size(1) <= heads.size(2), "angles ", angles.shape(),
                " must be [tokens, 2 * half] with 2 * half at most ", heads.size(2), ", the size of a head");
}

void check_scores(const FrontDoor& door, const Scores& scores) {
    door.finite("scale", scores.scale);
    door.expect(scores.window >= 0, "window must not be negative, it is ", scores.window);
    door.expect(std::isfinite(scores.soft_cap) && scores.soft_cap >= 0, "soft_cap must not be negative, it is ",
                scores.soft_cap);
}

/// key_cache and value_cache: alike, and [blocks, kv_heads, block_size, head_dim]; scales where they are i8.
void check_caches(const FrontDoor& door, const Tensor& key_cache, const Tensor& value_cache, const CacheScales& scales,
                  std::int64_t head_dim) {
    constexpr std::string_view shape = "[blocks, kv_heads, block_size, head_dim]";
    door.defined("key_cache", key_cache);
    door.defined("value_cache", value_cache);
    const bool packed = key_cache.dtype() == DType::i8;
    door.expect((is_float(key_cache.dtype()) || packed) && key_cache.rank() == 4,
                "key_cache must be f32, f16, bf16 or i8 ", shape, ", not ", key_cache);
    door.expect(value_cache.dtype() == key_cache.dtype() && value_cache.shape() == key_cache.shape(), "value_cache ",
                value_cache, " differs from key_cache ", key_cache);
    door.expect(key_cache.contiguous(), "key_cache is not contiguous");
    door.expect(value_cache.contiguous(), "value_cache is not contiguous");
    door.expect(key_cache.size(2) > 0 && key_cache.size(1) > 0, "key_cache ", key_cache.shape(), " has no room");
    door.expect(key_cache.size(3) == head_dim, "key_cache ", key_cache.shape(), " has heads of ", key_cache.size(3),
                " elements, q has heads of ", head_dim);
    for (const auto& [name, tensor] : {std::pair("key_scales", &scales.keys), {"value_scales", &scales.values}}) {
        door.expect(tensor->defined() == packed, name, packed ? " must come with an i8 cache" : " are of an i8 cache");
        if (!packed) continue;
        door.shaped(name, *tensor, DType::f32, 3, "[blocks, kv_heads, block_size]");
        door.expect(tensor->size(0) == key_cache.size(0) && tensor->size(1) == key_cache.size(1) &&
                        tensor->size(2) == key_cache.size(2),
                    name, " ", tensor->shape(), " do not fit key_cache ", key_cache.shape());
        door.expect(tensor->contiguous(), name, " are not contiguous");
    }
}

}  // namespace

void rope_append(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& angles, const Tensor& slots,
                 const Tensor& key_cache, const Tensor& value_cache, const CacheScales& scales,
                 const HeadNorms& norms) {
    const FrontDoor door(RopeAppend::name);
    door.activations("q", q, 3, "[tokens, heads, head_dim]");
    door.activations("k", k, 3, "[tokens, kv_heads, head_dim]");
    door.activations("v", v, 3, "[tokens, kv_heads, head_dim]");
    if (angles.defined()) check_angles(door, angles, "q", q);
    door.indices("slots", slots, 1, "[tokens]");
    door.same_size("k", k, 0, "q", q, 0);
    door.same_size("k", k, 2, "q", q, 2);
    door.expect(v.shape() == k.shape(), "v ", v.shape(), " and k ", k.shape(), " differ in shape");
    door.same_size("slots", slots, 0, "q", q, 0);
    check_caches(door, key_cache, value_cache, scales, q.size(2));
    door.same_size("key_cache", key_cache, 1, "k", k, 1);
    door.expect(norms.q.defined() == norms.k.defined(), "q_norm and k_norm must come together");
    if (norms.q.defined()) {
        door.vector("q_norm", norms.q, q.size(2));
        door.vector("k_norm", norms.k, q.size(2));
        door.finite("epsilon", norms.epsilon);
    }
    using Named = std::pair<std::string_view, const Tensor*>;
    std::vector<Named> written{{"q", &q}, {"key_cache", &key_cache}, {"value_cache", &value_cache}};
    if (scales.keys.defined()) {
        written.insert(written.end(), {{"key_scales", &scales.keys}, {"value_scales", &scales.values}});
    }
    std::vector<Named> read{{"k", &k}, {"v", &v}};
    if (angles.defined()) read.emplace_back("angles", &angles);
    if (norms.q.defined()) read.insert(read.end(), {{"q_norm", &norms.q}, {"k_norm", &norms.k}});
    for (std::size_t i = 0; i < written.size(); ++i) {
        const auto& [name, tensor] = written[i];
        door.destination(name, *tensor);
        for (const auto& [other, operand] : read) door.apart(name, *tensor, other, *operand);
        for (std::size_t j = i + 1; j < written.size(); ++j) {
            door.apart(name, *tensor, written[j].first, *written[j].second);
        }
    }
    dispatch(RopeAppend{q, k, v, angles, slots, key_cache, value_cache, scales.keys, scales.values, norms.q, norms.k,
                        norms.epsilon});
}

void rope(const Tensor& x, const Tensor& angles) {
    const FrontDoor door(Rope::name);
    door.activations("x", x, 3, "[tokens, heads, head_dim]");
    check_angles(door, angles, "x", x);
    door.destination("x", x);
    door.apart("x", x, "angles", angles);
    dispatch(Rope{x, angles});
}

Tensor attention(const Tensor& q, const Tensor& key_cache, const Tensor& value_cache, const Tensor& block_tables,
                 const Tensor& query_starts, const Tensor& context_lengths, const Scores& scores,
                 const CacheScales& scales) {
    const FrontDoor door(Attention::name);
    door.activations("q", q, 3, "[tokens, heads, head_dim]");
    check_caches(door, key_cache, value_cache, scales, q.size(2));
    door.expect(q.size(1) > 0 && q.size(1) % key_cache.size(1) == 0, q.size(1), " heads do not divide among ",
                key_cache.size(1), " key-value heads");
    door.indices("block_tables", block_tables, 2, "[sequences, max_blocks]");
    door.indices("query_starts", query_starts, 1, "[sequences + 1]");
    door.indices("context_lengths", context_lengths, 1, "[sequences]");
    door.same_size("block_tables", block_tables, 0, "context_lengths", context_lengths, 0);
    door.expect(query_starts.size(0) == context_lengths.size(0) + 1, "query_starts ", query_starts.shape(),
                " must have one element more than context_lengths ", context_lengths.shape());
    check_scores(door, scores);
    Tensor out = allocate(q, DType::f32, {q.size(0), q.size(1) * q.size(2)});
    dispatch(Attention{out, q, key_cache, value_cache, scales.keys, scales.values, block_tables, query_starts,
                       context_lengths, scores.scale, scores.soft_cap, scores.window, current_numerics()});
    return out;
}

Tensor encoder_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& starts, const Scores& scores,
                         const Tensor& bias) {
    const FrontDoor door(EncoderAttention::name);
    door.activations("q", q, 3, "[tokens, heads, head_dim]");
    door.activations("k", k, 3, "[tokens, kv_heads, head_dim]");
    door.activations("v", v, 3, "[tokens, kv_heads, head_dim]");
    door.same_size("k", k, 0, "q", q, 0);
    door.same_size("k", k, 2, "q", q, 2);
    door.expect(v.shape() == k.shape(), "v ", v.shape(), " and k ", k.shape(), " differ in shape");
    door.expect(q.size(1) > 0 && k.size(1) > 0 && q.size(1) % k.size(1) == 0, q.size(1), " heads do not divide among ",
                k.size(1), " key-value heads");
    door.indices("starts", starts, 1, "[sequences + 1]");
    door.expect(starts.size(0) > 0, "starts must not be empty");
    check_scores(door, scores);
    door.expect(scores.soft_cap == 0, "there is no soft_cap here");
    if (bias.defined()) {
        door.activations("bias", bias, 2, "[heads, 2 * reach + 1]");
        door.expect(bias.size(0) == q.size(1) && bias.size(1) % 2 == 1 && bias.contiguous(), "bias must be [",
                    q.size(1), ", 2 * reach + 1], contiguous, not ", bias);
    }
    Tensor out = allocate(q, DType::f32, {q.size(0), q.size(1) * q.size(2)});
    dispatch(EncoderAttention{out, q, k, v, starts, bias, scores.scale, scores.window, current_numerics()});
    return out;
}

Tensor pool(const Tensor& x, const Tensor& starts, Pooling pooling) {
    const FrontDoor door(Pool::name);
    door.activations("x", x, 2, "[tokens, dim]");
    door.indices("starts", starts, 1, "[sequences + 1]");
    door.expect(starts.size(0) > 0, "starts must not be empty");
    Tensor out = allocate(x, DType::f32, {starts.size(0) - 1, x.size(1)});
    dispatch(Pool{out, x, starts, pooling});
    return out;
}

Routes route(const Tensor& logits, std::int64_t k, Scoring scoring, bool normalize, float scale) {
    const FrontDoor door(Route::name);
    door.activations("logits", logits, 2, "[tokens, experts]");
    door.expect(k >= 1 && k <= logits.size(1), "k must be from 1 to ", logits.size(1), ", the number of experts, not ",
                k);
    door.finite("scale", scale);
    Routes out{allocate(logits, DType::i32, {logits.size(0), k}), allocate(logits, DType::f32, {logits.size(0), k})};
    dispatch(Route{out.experts, out.weights, logits, scoring, normalize, scale});
    return out;
}

Tensor expert_linear(const Tensor& x, const std::vector<std::vector<Weight>>& weights, const Tensor& experts,
                     std::optional<Activation> activation, const Tensor& route_weights, const Tensor& residual) {
    const FrontDoor door(ExpertLinear::name);
    door.activations("x", x, 2, "[rows, columns]");
    door.indices("experts", experts, 2, "[tokens, k]");
    door.expect(experts.contiguous(), "experts are not contiguous");
    door.expect(!weights.empty(), "there is no expert");
    std::vector<Weight> all;
    const std::size_t matrices = weights.front().size();
    for (const std::vector<Weight>& expert : weights) {
        door.expect(expert.size() == matrices && (matrices == 1 || matrices == 2),
                    "every expert must have one matrix, or every one two");
        for (const Weight& weight : expert) {
            door.weight("weight", weight);
            const Weight& first = weights.front().front();
            const bool alike = weight.rows() == first.rows() && weight.columns() == first.columns() &&
                               weight.format == first.format && weight.group() == first.group() &&
                               weight.data.dtype() == first.data.dtype();
            door.expect(alike, "weights ", first, " and ", weight, " differ");
            all.push_back(weight);
        }
    }
    const Weight& first = all.front();
    door.expect(first.columns() == x.size(1), "weight ", first, " has ", first.columns(), " columns, x ", x.shape(),
                " has ", x.size(1));
    door.expect(matrices == 1 || activation.has_value(), "two matrices of an expert need an activation between them");
    const std::int64_t tokens = experts.size(0), k = experts.size(1);
    const bool combine = route_weights.defined();
    door.expect(combine == residual.defined(), "route_weights and residual must come together");
    const std::int64_t expected = combine ? tokens * k : tokens;
    door.expect(x.size(0) == expected, "x ", x.shape(), " must have ", expected, " rows");
    Tensor out;
    if (combine) {
        door.shaped("route_weights", route_weights, DType::f32, 2, "[tokens, k]");
        door.expect(route_weights.shape() == experts.shape() && route_weights.contiguous(), "route_weights must be ",
                    experts.shape(), ", contiguous, not ", route_weights);
        door.residual(residual, {tokens, first.rows()});
        door.apart("residual", residual, "x", x);
        door.apart("residual", residual, "experts", experts);
        door.apart("residual", residual, "route_weights", route_weights);
        for (const Weight& weight : all) door.apart("residual", residual, "weight", weight.data);
        out = residual;
    } else {
        out = allocate(x, DType::f32, {tokens * k, first.rows()});
    }
    dispatch(ExpertLinear{out, x, experts, route_weights, std::move(all), static_cast<std::int64_t>(matrices),
                          activation, current_numerics()});
    return out;
}

Tensor gather_rows(const Tensor& x, const Tensor& rows) {
    const FrontDoor door(GatherRows::name);
    door.activations("x", x, 2, "[tokens, dim]");
    door.indices("rows", rows, 1, "[n]");
    Tensor out = allocate(x, DType::f32, {rows.size(0), x.size(1)});
    dispatch(GatherRows{out, x, rows});
    return out;
}

void copy(const Tensor& destination, const Tensor& source) {
    const FrontDoor door(Copy::name);
    door.defined("destination", destination);
    door.defined("source", source);
    door.expect(destination.shape() == source.shape(), "destination ", destination.shape(), " and source ",
                source.shape(), " differ in shape");
    const bool convertible = is_float(destination.dtype()) && is_float(source.dtype());
    door.expect(convertible || destination.dtype() == source.dtype(), "there is no conversion from ", source.dtype(),
                " to ", destination.dtype());
    door.destination("destination", destination);
    door.apart("destination", destination, "source", source);
    dispatch(Copy{destination, source});
}

Weight quantize(const Tensor& x, const Packing& packing, const Tensor& importance) {
    const FrontDoor door(Quantize::name);
    door.defined("x", x);
    door.expect(is_float(x.dtype()) && x.rank() == 2, "x must be f32, f16 or bf16 [rows, columns], not ", x);
    door.rows_contiguous("x", x);
    door.expect(packing.format == WeightFormat::int4 || packing.symmetric, "only int4 can be asymmetric");
    door.expect(packing.candidates >= 1, "candidates must be at least 1, not ", packing.candidates);
    if (importance.defined()) {
        door.vector("importance", importance, x.size(1));
        door.expect(importance.dtype() == DType::f32, "importance must be f32, not ", importance.dtype());
    }
    const std::int64_t rows = x.size(0), columns = x.size(1);
    const Dims shape = Weight::scales_shape(rows, columns, packing.group);
    const DType dtype = packing.format == WeightFormat::int8 ? DType::i8 : DType::u8;
    Weight out = Weight::packed(
        allocate(x, dtype, Weight::packed_shape(packing.format, rows, columns)), allocate(x, packing.scales, shape),
        packing.symmetric ? Tensor() : allocate(x, DType::u8, shape), rows, columns, packing.group);
    dispatch(Quantize{out, x, importance, packing.candidates});
    return out;
}

}  // namespace fermi
