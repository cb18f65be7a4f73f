// What the front doors refuse, and that they say it by name.
#include "ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include "backend.h"
#include "safetensors.h"

namespace fermi {
namespace {

Tensor zeros(const Dims& shape, DType dtype = DType::f32) {
    const Tensor tensor = Tensor::empty(dtype, shape);
    if (tensor.bytes() > 0) std::memset(tensor.bytes_data(), 0, tensor.bytes());
    return tensor;
}

Tensor indices(std::int64_t count) {
    return zeros({count}, DType::i32);
}
Weight weight(std::int64_t rows, std::int64_t columns) {
    return Weight::dense(zeros({rows, columns}));
}

/// Read-only memory.
class Fixed final : public Storage {
  public:
    explicit Fixed(const Tensor& tensor) : Storage(tensor.bytes_data(), tensor.bytes(), {}), tensor_(tensor) {}
    bool writable() const override { return false; }

  private:
    Tensor tensor_;
};

Tensor read_only(const Tensor& tensor) {
    return {std::make_shared<Fixed>(tensor), tensor.dtype(), tensor.shape(), tensor.strides(), 0};
}

std::string refusal(const std::function<void()>& op) {
    try {
        op();
    } catch (const InvalidArgument& error) {
        return error.what();
    }
    return "";
}

TEST(FrontDoors, SayWhatDoesNotFit) {
    EXPECT_EQ(refusal([] { rms_norm(zeros({2, 128}), zeros({64}), 1e-6F); }),
              "norm: weight has 64 elements, it must have 128");
    EXPECT_EQ(refusal([] { embed(zeros({3}), weight(5, 4)); }), "embed: token_ids must be i32 [tokens], not f32[3]");
    EXPECT_EQ(refusal([] { embed(Tensor(), weight(5, 4)); }), "embed: token_ids is not a tensor");
    EXPECT_EQ(refusal([] { embed(indices(2), Weight{}); }), "embed: table is not a tensor");
    EXPECT_EQ(refusal([] { linear(zeros({2, 8}), {weight(3, 8), weight(3, 7)}); }),
              "linear: weight f32[3, 7] has 7 columns, x [2, 8] has 8");
    EXPECT_EQ(refusal([] { linear(zeros({2, 8}), {}); }), "linear: there is no weight");
    EXPECT_EQ(refusal([] { linear(zeros({2, 8}), {weight(3, 8)}, {Tensor(), Tensor()}); }),
              "linear: 2 biases for 1 weights");
    EXPECT_EQ(refusal([] { linear(zeros({2, 8}), {weight(3, 8)}, {zeros({4})}); }),
              "linear: bias has 4 elements, it must have 3");
    EXPECT_EQ(refusal([] { linear(zeros({8, 2}).transpose(0, 1), {weight(3, 8)}); }),
              "linear: x: the last dimension must be contiguous, [2, 8] has strides [1, 2]");
    EXPECT_EQ(
        refusal([] { linear(zeros({2, 8}), {weight(3, 8), weight(4, 8)}, {}, {.activation = Activation::silu}); }),
        "linear: an activation takes one weight, or two of equal rows");
    EXPECT_EQ(refusal([] { linear(zeros({2, 8}), {weight(3, 8)}, {}, {.norm = {zeros({7})}}); }),
              "linear: norm has 7 elements, it must have 8");
    EXPECT_EQ(refusal([] { linear(zeros({2, 8}), {weight(3, 8)}, {}, {.residual = zeros({2, 4})}); }),
              "linear: residual must be [2, 3], not [2, 4]");
    EXPECT_EQ(refusal([] { gather_rows(zeros({2, 7}, DType::f16), indices(1)); }),
              "gather_rows: x must be f32 [tokens, dim], not f16[2, 7]");
    EXPECT_EQ(refusal([] { rms_norm(zeros({2, 8}), zeros({8}), std::nanf("")); }),
              "norm: epsilon must be finite, not nan");
}

TEST(FrontDoors, GuardWhatTheyWrite) {
    const Tensor x = zeros({2, 8});
    const auto add_to = [&](const Tensor& residual) { linear(x, {weight(8, 8)}, {}, {.residual = residual}); };
    EXPECT_EQ(refusal([&] { add_to(read_only(zeros({2, 8}))); }), "linear: residual is read-only");
    EXPECT_EQ(refusal([&] { add_to(x); }), "linear: residual and x share memory");
    const Tensor broadcast(zeros({2, 8}).storage(), DType::f32, {2, 8}, {0, 1}, 0);
    EXPECT_EQ(refusal([&] { add_to(broadcast); }),
              "linear: residual: elements share memory, [2, 8] has strides [0, 1]");
    EXPECT_EQ(refusal([&] { copy(x.narrow(1, 0, 4), x.narrow(1, 2, 4)); }),
              "copy: destination and source share memory");
    EXPECT_EQ(refusal([&] { copy(read_only(x), zeros({2, 8})); }), "copy: destination is read-only");
    EXPECT_EQ(refusal([&] { copy(x, zeros({2, 7})); }), "copy: destination [2, 8] and source [2, 7] differ in shape");
    EXPECT_EQ(refusal([&] { copy(x, zeros({2, 8}, DType::i32)); }), "copy: there is no conversion from i32 to f32");
}

TEST(FrontDoors, CheckRopeAppend) {
    const Tensor qkv = zeros({3, 32});
    const Tensor q = qkv.narrow(1, 0, 16).unflatten(1, {4, 4});
    const Tensor k = qkv.narrow(1, 16, 8).unflatten(1, {2, 4});
    const Tensor v = qkv.narrow(1, 24, 8).unflatten(1, {2, 4});
    const Tensor angles = zeros({3, 4});
    const Tensor slots = indices(3);
    const Tensor keys = zeros({5, 2, 2, 4});
    const Tensor values = zeros({5, 2, 2, 4});
    const auto append = [&](const Tensor& a, const Tensor& b, const Tensor& c, const Tensor& d) {
        return refusal([&] { rope_append(q, k, v, a, b, c, d); });
    };
    EXPECT_EQ(append(angles, slots, keys, values), "");
    EXPECT_EQ(append(zeros({3, 6}), slots, keys, values),
              "rope_append: angles [3, 6] must be [tokens, 2 * half] with 2 * half at most 4, the size of a head");
    EXPECT_EQ(append(zeros({3, 3}), slots, keys, values).rfind("rope_append: angles", 0), 0U);
    EXPECT_EQ(append(angles, indices(2), keys, values), "rope_append: slots [2] and q [3, 4, 4] do not fit: 2 and 3");
    EXPECT_EQ(append(angles, slots, keys, keys), "rope_append: key_cache and value_cache share memory");
    EXPECT_EQ(append(angles, slots, keys, zeros({5, 2, 2, 4}, DType::bf16)),
              "rope_append: value_cache bf16[5, 2, 2, 4] differs from key_cache f32[5, 2, 2, 4]");
    EXPECT_EQ(append(angles, slots, zeros({5, 3, 2, 4}), zeros({5, 3, 2, 4})),
              "rope_append: key_cache [5, 3, 2, 4] and k [3, 2, 4] do not fit: 3 and 2");
    EXPECT_EQ(append(angles, slots, zeros({5, 2, 0, 4}), zeros({5, 2, 0, 4})),
              "rope_append: key_cache [5, 2, 0, 4] has no room");
    EXPECT_EQ(append(angles, slots, read_only(keys), values), "rope_append: key_cache is read-only");
    EXPECT_EQ(refusal([&] { rope_append(q, q, q, angles, slots, zeros({5, 4, 2, 4}), zeros({5, 4, 2, 4})); }),
              "rope_append: q and k share memory");
}

TEST(FrontDoors, CheckAttention) {
    const Tensor keys = zeros({5, 2, 2, 4});
    const auto attend = [&](const Tensor& q, std::int64_t starts, std::int64_t contexts, float scale, int window) {
        return refusal([&] {
            attention(q, keys, keys, zeros({1, 3}, DType::i32), indices(starts), indices(contexts), {scale, window});
        });
    };
    EXPECT_EQ(attend(zeros({0, 4, 4}), 2, 1, 1.0F, 0), "") << "no tokens";
    EXPECT_EQ(attend(zeros({0, 3, 4}), 2, 1, 1.0F, 0), "attention: 3 heads do not divide among 2 key-value heads");
    EXPECT_EQ(attend(zeros({0, 4, 8}), 2, 1, 1.0F, 0),
              "attention: key_cache [5, 2, 2, 4] has heads of 4 elements, q has heads of 8");
    EXPECT_EQ(attend(zeros({0, 4, 4}), 1, 1, 1.0F, 0),
              "attention: query_starts [1] must have one element more than context_lengths [1]");
    EXPECT_EQ(attend(zeros({0, 4, 4}), 3, 2, 1.0F, 0),
              "attention: block_tables [1, 3] and context_lengths [2] do not fit: 1 and 2");
    EXPECT_EQ(attend(zeros({0, 4, 4}), 2, 1, std::numeric_limits<float>::infinity(), 0),
              "attention: scale must be finite, not inf");
    EXPECT_EQ(attend(zeros({0, 4, 4}), 2, 1, 1.0F, -1), "attention: window must not be negative, it is -1");
}

TEST(FrontDoors, CheckNormsAndWhatTheyAreAddedTo) {
    const Tensor x = zeros({2, 8}), ones = zeros({8});
    EXPECT_EQ(refusal([&] { layer_norm(x, ones, zeros({7}), 0.0F); }),
              "norm: the norm's bias has 7 elements, it must have 8");
    EXPECT_EQ(refusal([&] { rms_norm(x, ones, 0.0F, zeros({2, 7})); }), "norm: residual must be [2, 8], not [2, 7]");
    EXPECT_EQ(refusal([&] { rms_norm(x, ones, 0.0F, x); }), "norm: residual and x share memory");
    EXPECT_EQ(refusal([&] { rms_norm(x, ones, 0.0F, read_only(zeros({2, 8}))); }), "norm: residual is read-only");
    EXPECT_EQ(refusal([&] { embed(indices(2), weight(5, 4), 1.0F, zeros({2, 5})); }),
              "embed: residual must be [2, 4], not [2, 5]");
    EXPECT_EQ(refusal([&] { linear(x, {weight(3, 8)}, {}, {.norm = {Tensor(), 0.0F, NormKind::layer, ones}}); }),
              "linear: a norm's bias must come with its weight");
    EXPECT_EQ(refusal([&] { linear(x, {weight(3, 8)}, {}, {.soft_cap = -1.0F}); }),
              "linear: soft_cap must not be negative, it is -1");
}

TEST(FrontDoors, CheckRopeAndPools) {
    EXPECT_EQ(refusal([] { rope(zeros({2, 3, 8}), zeros({2, 10})); }),
              "rope: angles [2, 10] must be [tokens, 2 * half] with 2 * half at most 8, the size of a head");
    EXPECT_EQ(refusal([] { rope(read_only(zeros({2, 3, 8})), zeros({2, 8})); }), "rope: x is read-only");
    EXPECT_EQ(refusal([] { pool(zeros({2, 3}), indices(0), Pooling::mean); }), "pool: starts must not be empty");
}

TEST(FrontDoors, CheckEncoderAttention) {
    const auto attend = [](const Tensor& q, const Tensor& k, const Scores& scores, const Tensor& bias = {}) {
        return refusal([&] { encoder_attention(q, k, k, indices(2), scores, bias); });
    };
    const Tensor q = zeros({0, 4, 8}), k = zeros({0, 2, 8});
    EXPECT_EQ(attend(q, zeros({0, 3, 8}), {}), "encoder_attention: 4 heads do not divide among 3 key-value heads");
    EXPECT_EQ(attend(q, zeros({0, 2, 4}), {}), "encoder_attention: k [0, 2, 4] and q [0, 4, 8] do not fit: 4 and 8");
    EXPECT_EQ(attend(q, k, {1.0F, -1}), "encoder_attention: window must not be negative, it is -1");
    EXPECT_EQ(attend(q, k, {1.0F, 0, 2.0F}), "encoder_attention: there is no soft_cap here");
    EXPECT_EQ(attend(q, k, {}, zeros({4, 6})),
              "encoder_attention: bias must be [4, 2 * reach + 1], contiguous, not f32[4, 6]");
}

TEST(FrontDoors, CheckExperts) {
    const Tensor x = zeros({2, 8}), experts = zeros({2, 3}, DType::i32);
    EXPECT_EQ(refusal([&] { route(zeros({2, 4}), 5); }), "route: k must be from 1 to 4, the number of experts, not 5");
    EXPECT_EQ(refusal([&] { expert_linear(x, {}, experts); }), "expert_linear: there is no expert");
    EXPECT_EQ(refusal([&] { expert_linear(x, {{weight(3, 8)}, {weight(4, 8)}}, experts); }),
              "expert_linear: weights f32[3, 8] and f32[4, 8] differ");
    EXPECT_EQ(refusal([&] { expert_linear(x, {{weight(3, 8), weight(3, 8)}}, experts); }),
              "expert_linear: two matrices of an expert need an activation between them");
    EXPECT_EQ(refusal([&] { expert_linear(zeros({3, 8}), {{weight(3, 8)}}, experts); }),
              "expert_linear: x [3, 8] must have 2 rows");
    EXPECT_EQ(refusal([&] { expert_linear(x, {{weight(3, 8)}}, experts, {}, zeros({2, 3})); }),
              "expert_linear: route_weights and residual must come together");
}

TEST(FrontDoors, CheckRopeAngles) {
    const auto angles = [](const Tensor& frequencies, const RopeScaling& scaling) {
        return refusal([&] { rope_angles(indices(2), indices(2), frequencies, scaling); });
    };
    EXPECT_EQ(angles(zeros({1, 4}), {}), "");
    EXPECT_EQ(angles(zeros({2, 4}), {}), "rope_angles: this rule needs frequencies [1, half], not [2, 4]");
    EXPECT_EQ(angles(zeros({1, 4}), {.rule = RopeRule::longrope, .original_length = 8}),
              "rope_angles: this rule needs frequencies [2, half], not [1, 4]");
    EXPECT_EQ(angles(zeros({1, 4}), {.rule = RopeRule::dynamic_ntk, .base = 1e4F}),
              "rope_angles: original_length must be positive, not 0");
    EXPECT_EQ(angles(zeros({1, 4}), {.rule = RopeRule::dynamic_ntk, .original_length = 8}),
              "rope_angles: base must be positive, not 0");
    EXPECT_EQ(refusal([] { rope_angles(indices(2), indices(3), zeros({1, 4})); }),
              "rope_angles: lengths [3] and positions [2] do not fit: 3 and 2");
}

TEST(Ops, TakeNoTokens) {
    EXPECT_EQ(embed(indices(0), weight(5, 4)).shape(), Dims({0, 4}));
    EXPECT_EQ(linear(zeros({0, 4}), {weight(3, 4)}).shape(), Dims({0, 3}));
    EXPECT_EQ(rms_norm(zeros({0, 2, 4}), zeros({4}), 1.0F).shape(), Dims({0, 2, 4}));
    EXPECT_EQ(linear(zeros({0, 4}), {weight(3, 4), weight(3, 4)}, {}, {.activation = Activation::gelu}).shape(),
              Dims({0, 3}));
    EXPECT_EQ(gather_rows(zeros({3, 4}), indices(0)).shape(), Dims({0, 4}));
    EXPECT_EQ(linear(zeros({0, 4}), {weight(3, 4)}, {}, {.residual = zeros({0, 3})}).shape(), Dims({0, 3}));
    EXPECT_EQ(rope_angles(indices(0), indices(0), zeros({1, 2})).shape(), Dims({0, 4}));
    EXPECT_EQ(layer_norm(zeros({0, 4}), zeros({4}), Tensor(), 1.0F).shape(), Dims({0, 4}));
    rope(zeros({0, 2, 4}), zeros({0, 4}));
    EXPECT_EQ(pool(zeros({0, 3}), indices(2), Pooling::max).shape(), Dims({1, 3}));
    EXPECT_EQ(encoder_attention(zeros({0, 2, 4}), zeros({0, 1, 4}), zeros({0, 1, 4}), indices(1), {}).shape(),
              Dims({0, 8}));
    EXPECT_EQ(route(zeros({0, 4}), 2).experts.shape(), Dims({0, 2}));
    EXPECT_EQ(expert_linear(zeros({0, 4}), {{weight(3, 4)}}, zeros({0, 2}, DType::i32)).shape(), Dims({0, 3}));
    copy(zeros({0, 3}), zeros({0, 3}));
    copy(zeros({}), zeros({}));
}

TEST(Weight, IsAFloatMatrixOfContiguousRows) {
    EXPECT_EQ(message(weight(2, 3)), "f32[2, 3]");
    EXPECT_EQ(weight(2, 3).bytes(), 24U);
    EXPECT_THROW(Weight::dense(Tensor()), InvalidArgument);
    EXPECT_THROW(Weight::dense(zeros({2, 3}, DType::i8)), InvalidArgument);
    EXPECT_THROW(Weight::dense(zeros({6})), InvalidArgument);
    EXPECT_THROW(Weight::dense(zeros({2, 3}).transpose(0, 1)), InvalidArgument);
    EXPECT_NO_THROW(Weight::dense(zeros({4, 8}).narrow(1, 2, 4)));
}

}  // namespace
}  // namespace fermi
