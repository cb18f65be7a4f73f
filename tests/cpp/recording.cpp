// Describing, running and inspecting recordings; what eager ops and recordings refuse.
#include "recording.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <queue>
#include <random>
#include <thread>

#include "arena.h"

namespace fermi {
namespace {

Tensor normal(const Dims& shape, unsigned seed, DType dtype = DType::f32) {
    std::mt19937 random(seed);
    const Tensor values = Tensor::empty(DType::f32, shape);
    for (std::int64_t i = 0; i < values.elements(); ++i) {
        values.data<float>()[i] = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
    }
    if (dtype == DType::f32) return values;
    const Tensor converted = Tensor::empty(dtype, shape);
    copy(converted, values);
    return converted;
}

Tensor integers(const std::vector<std::int32_t>& values) {
    const Tensor tensor = Tensor::empty(DType::i32, {static_cast<std::int64_t>(values.size())});
    if (!values.empty()) std::memcpy(tensor.bytes_data(), values.data(), tensor.bytes());
    return tensor;
}

bool same_bits(const Tensor& a, const Tensor& b) {
    return a.shape() == b.shape() && std::memcmp(a.bytes_data(), b.bytes_data(), a.bytes()) == 0;
}

/// A decoder of one layer, written as models write it.
struct Decoder {
    static constexpr std::int64_t vocabulary = 50;
    static constexpr std::int64_t hidden = 32;
    static constexpr std::int64_t heads = 4;
    static constexpr std::int64_t kv_heads = 2;
    static constexpr std::int64_t head_dim = 8;
    static constexpr std::int64_t blocks = 6;
    static constexpr std::int64_t block_size = 4;

    Weight table = Weight::dense(normal({vocabulary, hidden}, 1, DType::bf16));
    Weight q_weight = Weight::dense(normal({heads * head_dim, hidden}, 2));
    Weight k_weight = Weight::dense(normal({kv_heads * head_dim, hidden}, 3, DType::f16));
    Weight v_weight = Weight::dense(normal({kv_heads * head_dim, hidden}, 4, DType::bf16));
    Weight out_weight = Weight::dense(normal({hidden, heads * head_dim}, 5));
    Weight gate_weight = Weight::dense(normal({hidden, hidden}, 8));
    Weight up_weight = Weight::dense(normal({hidden, hidden}, 6));
    Weight down_weight = Weight::dense(normal({hidden, hidden}, 7));
    Tensor bias = normal({kv_heads * head_dim}, 8);
    Tensor norm = normal({hidden}, 9);
    Tensor frequencies = normal({1, head_dim / 2}, 10);
    Tensor keys = normal({blocks, kv_heads, block_size, head_dim}, 11, DType::bf16);
    Tensor values = normal({blocks, kv_heads, block_size, head_dim}, 12, DType::bf16);

    Tensor token_ids = integers({3, 49, 0, 7, 7});
    Tensor positions = integers({4, 5, 6, 0, 1});
    Tensor lengths = integers({7, 7, 7, 2, 2});
    Tensor slots = integers({8, 9, 10, 20, -1});
    Tensor tables = integers({1, 2, 5, -1}).reshape({2, 2});
    Tensor starts = integers({0, 3, 5});
    Tensor contexts = integers({7, 2});
    Tensor rows = integers({4, 2});

    Tensor operator()() const {
        Tensor x = embed(token_ids, table);
        const Tensor angles = rope_angles(positions, lengths, frequencies);
        {
            const Tensor normed = rms_norm(x, norm, 1e-6F);
            const Tensor qkv = linear(normed, {q_weight, k_weight, v_weight}, {Tensor(), bias, Tensor()});
            const Tensor q = qkv.narrow(1, 0, heads * head_dim).unflatten(1, {heads, head_dim});
            const Tensor k = qkv.narrow(1, heads * head_dim, kv_heads * head_dim).unflatten(1, {kv_heads, head_dim});
            const Tensor v =
                qkv.narrow(1, (heads + kv_heads) * head_dim, kv_heads * head_dim).unflatten(1, {kv_heads, head_dim});
            rope_append(q, k, v, angles, slots, keys, values);
            const Tensor attended = attention(q, keys, values, tables, starts, contexts, {0.35F});
            linear(attended, {out_weight}, {}, {.residual = x});
        }
        {
            const Tensor gated =
                linear(x, {gate_weight, up_weight}, {}, {.norm = {norm, 1e-6F}, .activation = Activation::silu});
            linear(gated, {down_weight}, {}, {.residual = x});
        }
        return linear(gather_rows(x, rows), {table}, {}, {.norm = {norm, 1e-6F}});
    }
};

/// What one thread hands to another, in order.
template <class T>
class Channel {
  public:
    void send(T value) {
        const std::lock_guard lock(mutex_);
        values_.push(std::move(value));
        filled_.notify_one();
    }
    T receive() {
        std::unique_lock lock(mutex_);
        filled_.wait(lock, [&] { return !values_.empty(); });
        T value = std::move(values_.front());
        values_.pop();
        return value;
    }

  private:
    std::mutex mutex_;
    std::condition_variable filled_;
    std::queue<T> values_;
};

class Recordings : public ::testing::Test {
  protected:
    std::shared_ptr<Backend> backend_ = open_backend({}, {.index = 0, .threads = 2}, "");
    BackendScope scope_{backend_};
};

TEST_F(Recordings, EqualEagerBitForBit) {
    const Decoder decoder;
    const Tensor keys_before = Tensor::empty(DType::bf16, decoder.keys.shape());
    copy(keys_before, decoder.keys);
    const Tensor eager = decoder();
    const Tensor keys_after = Tensor::empty(DType::bf16, decoder.keys.shape());
    copy(keys_after, decoder.keys);
    EXPECT_FALSE(same_bits(keys_before, keys_after));

    copy(decoder.keys, keys_before);
    Recording recording(backend_);
    recording.open();
    EXPECT_EQ(Recording::current(), &recording);
    const Tensor logits = decoder();
    recording.close();
    EXPECT_EQ(Recording::current(), nullptr);
    EXPECT_TRUE(same_bits(decoder.keys, keys_before)) << "describing runs nothing";
    for (int round = 0; round < 3; ++round) {
        recording.run();
        EXPECT_TRUE(same_bits(logits, eager)) << "round " << round;
        EXPECT_TRUE(same_bits(decoder.keys, keys_after));
    }
    EXPECT_EQ(recording.ops().size(), 11U);
}

TEST_F(Recordings, ReadTheirInputsWhenTheyRun) {
    const Decoder decoder;
    Recording recording(backend_);
    recording.open();
    const Tensor logits = decoder();
    recording.close();
    recording.compile();
    decoder.token_ids.data<std::int32_t>()[0] = 11;
    decoder.contexts.data<std::int32_t>()[0] = 6;
    recording.run();
    EXPECT_TRUE(same_bits(logits, decoder()));
}

TEST_F(Recordings, ReuseTheMemoryOfIntermediates) {
    const Weight square = Weight::dense(normal({256, 256}, 1));
    const Tensor x = normal({64, 256}, 2);
    Recording recording(backend_);
    recording.open();
    Tensor h = x;
    for (int layer = 0; layer < 10; ++layer) h = linear(h, {square});
    recording.close();
    EXPECT_EQ(recording.workspace_bytes(), 2 * x.bytes());
    recording.run();
    Tensor eager = x;
    for (int layer = 0; layer < 10; ++layer) eager = linear(eager, {square});
    EXPECT_TRUE(same_bits(h, eager));
}

TEST_F(Recordings, KeepTensorsThatLive) {
    const Tensor x = normal({4, 8}, 1);
    const Tensor ones = normal({8}, 2);
    std::vector<Tensor> kept;
    std::vector<Tensor> expected;
    Recording recording(backend_);
    recording.open();
    for (int i = 1; i <= 20; ++i) {
        const Tensor dropped = rms_norm(x, ones, static_cast<float>(i));
        kept.push_back(rms_norm(dropped, ones, static_cast<float>(i)).narrow(0, i % 4, 1));
    }
    recording.close();
    recording.run();
    for (int i = 1; i <= 20; ++i) {
        const Tensor all = rms_norm(rms_norm(x, ones, static_cast<float>(i)), ones, static_cast<float>(i));
        EXPECT_TRUE(same_bits(kept[static_cast<std::size_t>(i - 1)], all.narrow(0, i % 4, 1)));
    }
}

TEST_F(Recordings, OutputsOutliveThem) {
    Tensor out;
    {
        Recording recording(backend_);
        recording.open();
        out = rms_norm(normal({2, 8}, 1), normal({8}, 2), 1e-6F);  // operands live in the recording only
        recording.close();
        recording.run();
    }
    EXPECT_TRUE(same_bits(out, rms_norm(normal({2, 8}, 1), normal({8}, 2), 1e-6F)));
}

TEST_F(Recordings, HaveOneLife) {
    Recording recording(backend_);
    EXPECT_THROW(recording.run(), InvalidArgument);
    EXPECT_THROW(recording.close(), InvalidArgument);
    recording.open();
    EXPECT_THROW(recording.open(), InvalidArgument);
    EXPECT_THROW(recording.run(), InvalidArgument);
    EXPECT_THROW(Recording(backend_).open(), InvalidArgument) << "another one is open";
    std::thread([&] { EXPECT_THROW(recording.close(), InvalidArgument); }).join();
    recording.close();
    EXPECT_THROW(recording.open(), InvalidArgument);
    recording.run();  // no ops: nothing happens
    EXPECT_THROW(Recording(nullptr), InvalidArgument);
}

TEST_F(Recordings, DoNotRunAfterAnError) {
    Recording recording(backend_);
    recording.open();
    const Tensor out = rms_norm(normal({2, 8}, 1), normal({8}, 2), 1e-6F);
    recording.close(true);
    EXPECT_THROW(recording.run(), InvalidArgument);
    EXPECT_THROW(gather_rows(out, integers({0})), InvalidArgument) << "its tensors have no memory";
}

TEST_F(Recordings, RefuseTensorsOfOthersStillOpen) {
    Recording first(backend_);
    first.open();
    const Tensor foreign = rms_norm(normal({2, 8}, 1), normal({8}, 2), 1e-6F);
    std::thread([&] {
        EXPECT_THROW(gather_rows(foreign, integers({0})), InvalidArgument);
        Recording second(backend_);
        second.open();
        EXPECT_THROW(gather_rows(foreign, integers({0})), InvalidArgument);
        second.close();
    }).join();
    first.close();
    first.run();
    Recording third(backend_);
    third.open();
    const Tensor row = gather_rows(foreign, integers({1}));
    third.close();
    third.run();
    EXPECT_TRUE(same_bits(row, foreign.narrow(0, 1, 1)));
}

TEST_F(Recordings, DestroyedWhileOpenLeaveNothingOpen) {
    {
        Recording recording(backend_);
        recording.open();
    }
    EXPECT_EQ(Recording::current(), nullptr);
    EXPECT_TRUE(rms_norm(normal({2, 8}, 1), normal({8}, 2), 1e-6F).defined());
}

TEST_F(Recordings, RunOnSeveralThreadsOneAfterTheOther) {
    const Decoder decoder;
    Recording recording(backend_);
    recording.open();
    const Tensor logits = decoder();
    recording.close();
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
        threads.emplace_back([&] {
            for (int round = 0; round < 20; ++round) recording.run();
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(same_bits(logits, decoder()));
}

/// As the service hands steps over: one thread writes inputs and describes, a second compiles and runs, a third reads.
/// Two such engines share the backend; each alternates a recording that is kept with one that is described anew.
TEST_F(Recordings, PassBetweenTheThreadsOfTwoEngines) {
    constexpr std::size_t rounds = 60;
    const std::vector<std::vector<std::int32_t>> texts{{3, 49, 0, 7, 7}, {1, 2, 3, 4, 5}, {49, 48, 47, 46, 45}};
    std::vector<Tensor> expected;
    for (const std::vector<std::int32_t>& text : texts) {
        Decoder decoder;
        decoder.token_ids = integers(text);
        expected.push_back(decoder());
    }
    struct Step {
        std::shared_ptr<Recording> recording;
        Tensor logits;
        std::size_t text = 0;
    };
    struct Engine {
        Decoder decoder;
        Channel<Step> described;
        Channel<Step> computed;
        Channel<bool> read;
        std::size_t equal = 0;
    };
    const auto describe = [&](const Decoder& decoder, std::size_t text) {
        const auto recording = std::make_shared<Recording>(backend_);
        recording->open();
        const Tensor logits = decoder();
        recording->close();
        return Step{recording, logits, text};
    };
    const auto write_inputs = [&](Engine& engine) {
        Step kept = describe(engine.decoder, 0);
        for (std::size_t round = 0; round < rounds; ++round) {
            const std::size_t text = round % texts.size();
            if (round % 2 == 0) {
                if (round > 0) engine.read.receive();  // its inputs and outputs are free again
                const Tensor& token_ids = engine.decoder.token_ids;
                std::memcpy(token_ids.bytes_data(), texts[text].data(), token_ids.bytes());
                kept.text = text;
                engine.described.send(kept);
            } else {
                Decoder once = engine.decoder;  // the same weights and cache
                once.token_ids = integers(texts[text]);
                engine.described.send(describe(once, text));
            }
        }
    };
    const auto run = [&](Engine& engine) {
        for (std::size_t round = 0; round < rounds; ++round) {
            Step step = engine.described.receive();
            step.recording->compile();
            step.recording->run();
            engine.computed.send(std::move(step));
        }
    };
    const auto read_outputs = [&](Engine& engine) {
        for (std::size_t round = 0; round < rounds; ++round) {
            const Step step = engine.computed.receive();
            engine.equal += same_bits(step.logits, expected[step.text]);
            if (round % 2 == 0) engine.read.send(true);
        }
    };
    Engine first;
    Engine second;
    std::vector<std::thread> threads;
    for (Engine* engine : {&first, &second}) {
        threads.emplace_back([&, engine] { write_inputs(*engine); });
        threads.emplace_back([&, engine] { run(*engine); });
        threads.emplace_back([&, engine] { read_outputs(*engine); });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(first.equal, rounds);
    EXPECT_EQ(second.equal, rounds);
}

TEST_F(Recordings, PrintOneLinePerOp) {
    const Weight weight = Weight::dense(normal({4, 8}, 3, DType::bf16));
    Recording recording(backend_, Numerics::batch_invariant);
    recording.open();
    const Tensor x = rms_norm(normal({3, 8}, 1), normal({8}, 2), 1e-6F);
    linear(x, {weight}, {normal({4}, 4)});
    recording.close();
    EXPECT_EQ(message(recording),
              "f32[3, 8] = norm(x f32[3, 8], weight f32[8], rms, epsilon 1e-06)\n"
              "f32[3, 4] = linear(x f32[3, 8], weight bf16[4, 8], bias f32[4], batch_invariant)\n");
}

TEST_F(Recordings, CountBytesAndOperations) {
    const Weight weight = Weight::dense(normal({4, 8}, 3, DType::bf16));
    const Tensor x = normal({3, 8}, 1);
    Recording recording(backend_);
    recording.open();
    linear(x, {weight});
    attention(normal({5, 4, 8}, 2), normal({6, 2, 4, 8}, 3), normal({6, 2, 4, 8}, 4),
              integers({0, 1, 2, 3}).reshape({2, 2}), integers({0, 3, 5}), integers({7, 2}), {1.0F, 4});
    recording.close();
    const Cost product = cost_of(recording.ops()[0]);
    EXPECT_EQ(product.bytes, 4U * 24 + 2 * 32 + 4 * 12);
    EXPECT_EQ(product.operations, 2U * 3 * 4 * 8);
    // Sequence 0: positions 4 to 6 with a window of 4 see 4 keys each, 6 in all. Sequence 1: 1 and 2, 2 in all.
    const Cost attended = cost_of(recording.ops()[1]);
    EXPECT_EQ(attended.bytes, 4U * (5 * 32 + 5 * 32 + 3 + 2 + 2 * 8 * 2 * 8));
    EXPECT_EQ(attended.operations, 4U * (12 + 3) * 4 * 8);
}

TEST_F(Recordings, CountWhatEncodersAndExpertsCost) {
    const Tensor x = normal({6, 8}, 1), q = normal({6, 2, 4}, 2), ones = normal({8}, 3);
    const Weight weight = Weight::dense(normal({5, 8}, 4, DType::bf16));
    const std::vector<std::vector<Weight>> experts(9, {weight, weight});
    Recording recording(backend_);
    recording.open();
    encoder_attention(q, q, q, integers({0, 5, 6}), {});
    encoder_attention(q, q, q, integers({0, 5, 6}), {1.0F, 1});
    layer_norm(x, ones, ones, 0.0F, normal({6, 8}, 5));
    pool(x, integers({0, 2, 6}), Pooling::mean);
    linear(x, {weight}, {}, {.scale = 2.0F, .soft_cap = 3.0F});
    const Routes routes = route(normal({6, 9}, 6), 2);
    expert_linear(x, experts, routes.experts, Activation::silu);
    recording.close();
    const auto check = [&](std::size_t i, std::uint64_t bytes, std::uint64_t operations) {
        EXPECT_EQ(cost_of(recording.ops()[i]).bytes, bytes) << recording.ops()[i];
        EXPECT_EQ(cost_of(recording.ops()[i]).operations, operations) << recording.ops()[i];
    };
    check(0, 4U * (4 * 48 + 3), 4U * (25 + 1) * 8);
    check(1, 4U * (4 * 48 + 3), 4U * (2 + 3 + 3 + 3 + 2 + 1) * 8);
    check(2, 4U * (3 * 48 + 2 * 8), 7U * 48);
    check(3, 4U * (48 + 3 + 2 * 8), 48U);
    check(4, 4U * (48 + 30) + 2U * 40, 2U * 6 * 40 + 4U * 30);
    check(5, 4U * (54 + 2 * 12), 3U * 54);
    // All nine of the experts can be in use, of two matrices each.
    check(6, 4U * (48 + 12 + 12 * 5) + 9U * 2 * 2 * 40, 2U * 12 * 2 * 40 + 5U * 60);
}

TEST_F(Recordings, CheckIndicesBeforeEachRun) {
    const Decoder decoder;
    Recording recording(backend_);
    recording.open();
    const Tensor logits = decoder();
    recording.close();
    recording.run();
    const auto refused = [&](const Tensor& tensor, std::int64_t index, std::int32_t value, const std::string& text) {
        std::int32_t& element = tensor.data<std::int32_t>()[index];
        const std::int32_t before = std::exchange(element, value);
        try {
            recording.run();
            ADD_FAILURE() << text;
        } catch (const InvalidArgument& error) {
            EXPECT_EQ(error.what(), text);
        }
        EXPECT_THROW(decoder(), InvalidArgument) << "eager as well";
        element = before;
    };
    refused(decoder.token_ids, 1, 50, "embed: token_ids[1] is 50, beyond the last, 49");
    refused(decoder.token_ids, 4, -1, "embed: token_ids[4] is -1, below 0");
    refused(decoder.slots, 0, 24, "rope_append: slots[0] is 24, beyond the last, 23");
    refused(decoder.rows, 1, 5, "gather_rows: rows[1] is 5, beyond the last, 4");
    refused(decoder.tables, 1, 6, "attention: block_tables[0, 1] is 6, the cache has 6 blocks");
    refused(decoder.tables, 2, -1, "attention: block_tables[1, 0] is -1, the cache has 6 blocks");
    refused(decoder.starts, 0, 1, "attention: query_starts[0] is 1, not 0");
    refused(decoder.starts, 1, 6, "attention: query_starts[2] is 5, below the one before");
    refused(decoder.starts, 2, 4, "attention: query_starts end at 4, q has 5 tokens");
    refused(decoder.contexts, 0, 9, "attention: context_lengths[0] is 9, block_tables hold 8");
    refused(decoder.contexts, 1, 1, "attention: context_lengths[1] is 1, with 2 queries");
    recording.run();
    EXPECT_TRUE(same_bits(logits, decoder()));
}

TEST_F(Recordings, NeedNoBlocksOutsideTheWindow) {
    const Tensor q = normal({2, 4, 8}, 1);
    const Tensor cache = normal({4, 2, 4, 8}, 2);
    const Tensor starts = integers({0, 2});
    const Tensor contexts = integers({11});
    const auto attend = [&](const std::vector<std::int32_t>& blocks, std::int32_t window) {
        return attention(q, cache, cache, integers(blocks).reshape({1, 4}), starts, contexts, {1.0F, window});
    };
    // The first query stands at position 9 and sees keys from 9 - 4 + 1 = 6 on, in block 1.
    EXPECT_TRUE(same_bits(attend({-1, 2, 3, -1}, 4), attend({0, 2, 3, 1}, 4)));
    EXPECT_THROW(attend({-1, 2, 3, -1}, 7), InvalidArgument);
    EXPECT_THROW(attend({-1, 2, 3, -1}, 0), InvalidArgument);
}

TEST_F(Recordings, CheckExpertsThatNoRouteHasChosen) {
    const Tensor x = normal({2, 8}, 1), logits = normal({2, 3}, 2);
    std::vector<std::vector<Weight>> weights;
    for (unsigned i = 0; i < 3; ++i) weights.push_back({Weight::dense(normal({4, 8}, 3 + i))});
    const Tensor chosen = integers({0, 2, 1, 3}).reshape({2, 2});
    EXPECT_THROW(expert_linear(x, weights, chosen), InvalidArgument);
    chosen.data<std::int32_t>()[3] = 0;
    expert_linear(x, weights, chosen);

    /// What becomes of a recording in which experts are chosen, and perhaps something happens to them.
    const auto closes = [&](std::size_t experts, const auto& meanwhile) {
        Recording recording(backend_);
        recording.open();
        const Tensor routed = route(logits, 2).experts;
        meanwhile(routed);
        expert_linear(x, {weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(experts)}, routed);
        try {
            recording.close();
            recording.run();
        } catch (const InvalidArgument& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    const auto nothing = [](const Tensor&) {};
    EXPECT_EQ(closes(3, nothing), "");
    EXPECT_EQ(closes(2, nothing), "expert_linear: experts are chosen among 3, there are 2");
    EXPECT_EQ(closes(3, [&](const Tensor& routed) { copy(routed, chosen); }),
              "route: experts overwrites indices that an op of the same recording reads");
    EXPECT_EQ(closes(3, [&](const Tensor& routed) { copy(routed.narrow(0, 1, 1), chosen.narrow(0, 1, 1)); }),
              "route: experts overwrites indices that an op of the same recording reads");
}

TEST_F(Recordings, RefuseToOverwriteIndices) {
    const Tensor ids = integers({0, 1});
    const Tensor others = integers({0, 1'000'000});
    Recording recording(backend_);
    recording.open();
    copy(ids, others);
    embed(ids, Weight::dense(normal({4, 8}, 1)));
    EXPECT_THROW(recording.close(), InvalidArgument);
    EXPECT_EQ(Recording::current(), nullptr);
    EXPECT_THROW(recording.run(), InvalidArgument);
}

}  // namespace
}  // namespace fermi
