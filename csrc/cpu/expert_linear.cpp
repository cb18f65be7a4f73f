// Linear with an expert's own weights for each token.
//
// A row is a token together with one of its experts. Every lane sorts the rows by expert, all in the same way, so that
// an expert's weights meet all their rows at once and are read once. Work is cut into items of some rows of an expert ×
// some of its outputs, which lanes take as they get free; the rows of an item are gathered side by side first, and so
// its products are those of Linear.
//
// To combine, the results of all rows wait in shared memory, some outputs at a time, until those of a token are all
// there; then they are added up in the order of its experts. While some lanes still add, others fill the other half of
// that memory: a lane that has passed the next barrier knows that all have added.
#include <algorithm>
#include <cstring>

#include "cpu/activation.h"
#include "cpu/kernels.h"
#include "cpu/linear_dense.h"
#include "cpu/linear_product.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Bytes of results that wait to be added up: a few megabytes stay in the cache.
constexpr std::int64_t waiting_bytes = 4 << 20;
/// Outputs that wait together at the least.
constexpr std::int64_t least_waiting = 128;
/// Outputs that are added up by one lane at a time.
constexpr std::int64_t added_outputs = 512;
/// More rows than any item has.
constexpr std::int64_t many_rows = 1 << 30;

InputKind input_kind(const ExpertLinear& op) {
    const Weight& weight = op.weights[0];
    if (weight.format != WeightFormat::dense) return InputKind::bytes;
    return dense_kind(weight.data.dtype(), op.experts.size(0), op.x.size(1), op.numerics, InputKind::as_it_is);
}

/// Everything a lane needs to know of the op.
struct Work {
    const ExpertLinear& op;
    int lanes;
    std::int64_t experts;
    std::int64_t k;
    std::int64_t rows;
    std::int64_t outputs;  // of an expert
    InputRows gathered;    // of an item
    LinearInputs inputs;   // the rows of x
    std::int64_t waiting;  // outputs that are added up together

    Work(const ExpertLinear& linear, int lane_count)
        : op(linear),
          lanes(lane_count),
          experts(static_cast<std::int64_t>(linear.weights.size()) / linear.matrices),
          k(linear.experts.size(1)),
          rows(linear.experts.elements()),
          outputs(linear.weights[0].rows()),
          gathered(input_kind(linear), linear.x.size(1), linear.weights[0].group(), rows),
          inputs(linear.x, {gathered.kind, gathered.columns, gathered.group, linear.x.size(0)}, nullptr),
          waiting(outputs) {
        if (!combines()) return;
        const std::int64_t fitting = waiting_bytes / 4 / std::max<std::int64_t>(1, rows);
        waiting = std::min(outputs, round_up(std::max(least_waiting, fitting), tile()));
    }

    InputKind kind() const { return gathered.kind; }
    std::int64_t tile() const { return tile_outputs(kind()); }
    bool combines() const { return op.route_weights.defined(); }
    /// Whether results pass through a lane's own memory, on the way to an activation or to rows that lie apart.
    bool buffered() const { return !combines() || op.activation.has_value(); }

    /// Rows of an item of an expert that has so many.
    std::int64_t item_rows(std::int64_t of) const { return tokens_per_item(kind(), of, op.x.size(1)); }
    /// Outputs of such an expert that are multiplied together, where so many experts are in use.
    std::int64_t step(std::int64_t of, std::int64_t used) const {
        const std::int64_t most = std::max(tile(), round_up(outputs, tile()));
        return std::min(most, outputs_per_item(kind(), op.weights[0], of, used * outputs, buffered(), lanes));
    }
    /// Outputs of an item, in whole steps: few enough for the lanes to end together, enough to be worth the gathering.
    std::int64_t item_outputs(std::int64_t of, std::int64_t used) const {
        const std::int64_t whole = step(of, used);
        return round_up(std::clamp(used * outputs / (16 * lanes), whole, std::max(whole, outputs)), whole);
    }

    std::int64_t most_rows() const { return std::min(rows, item_rows(many_rows)); }
    std::int64_t most_outputs() const {
        const std::int64_t used = std::min(experts, rows);
        return std::max(step(1, used), step(many_rows, used));
    }
    /// Of one of the two halves.
    std::size_t waiting_floats() const { return combines() ? float_bytes(rows * waiting) / sizeof(float) : 0; }
    std::size_t halves() const { return waiting < outputs ? 2 : 1; }
};

/// Memory of a lane, behind what the inputs take of it.
class Space {
  public:
    Vec* saved;
    float* buffer;  // of results, one part for each matrix
    std::size_t part;
    std::byte* gathered;
    std::int32_t* starts;     // of each expert's rows in their order, and their end
    std::int32_t* order;      // rows by expert
    std::int32_t* positions;  // of each row in that order

    Space(const Work& work, std::byte* own) : next_(own) {
        const std::int64_t most = work.most_rows();
        saved = take<Vec>(work.kind() == InputKind::bytes ? 0 : dense_scratch(most));
        part = work.buffered() ? float_bytes(most * work.most_outputs()) / sizeof(float) : 0;
        buffer = take<float>(part * sizeof(float) * static_cast<std::size_t>(work.op.matrices));
        gathered = take<std::byte>(static_cast<std::size_t>(work.gathered.bytes(most)));
        starts = take<std::int32_t>(static_cast<std::size_t>(work.experts + 1) * sizeof(std::int32_t));
        order = take<std::int32_t>(static_cast<std::size_t>(work.rows) * sizeof(std::int32_t));
        positions = take<std::int32_t>(static_cast<std::size_t>(work.rows) * sizeof(std::int32_t));
        bytes = static_cast<std::size_t>(next_ - own);
    }

    std::size_t bytes;

  private:
    template <class T>
    T* take(std::size_t size) {
        auto* taken = reinterpret_cast<T*>(next_);
        next_ += round_up_size(size);
        return taken;
    }

    std::byte* next_;
};

/// Sorts the rows by expert; those of one stay in their order. Returns how many experts are in use.
std::int64_t sort_rows(const Work& work, const Space& space) {
    const auto* experts = work.op.experts.data<std::int32_t>();
    std::int32_t* starts = space.starts;
    std::fill_n(starts, work.experts + 1, 0);
    for (std::int64_t row = 0; row < work.rows; ++row) ++starts[experts[row] + 1];
    std::int64_t used = 0;
    for (std::int64_t e = 0; e < work.experts; ++e) {
        if (starts[e + 1] > 0) ++used;
        starts[e + 1] += starts[e];
    }
    for (std::int64_t row = 0; row < work.rows; ++row) {
        const std::int32_t position = starts[experts[row]]++;
        space.order[position] = static_cast<std::int32_t>(row);
        space.positions[row] = position;
    }
    // Each start has moved to the next one's place.
    std::copy_backward(starts, starts + work.experts, starts + work.experts + 1);
    starts[0] = 0;
    return used;
}

/// The rows of x at some positions: those from `first` on.
struct Gathered {
    ProductRows rows;
    std::int64_t first;
};

/// Brings them side by side. One row stays where it is.
Gathered gather(const Work& work, const Space& space, const std::byte* made, Range positions) {
    const InputRows& to = work.gathered;
    const std::int64_t stride = work.inputs.row_bytes();
    const auto source = [&](std::int64_t position) {
        const std::int64_t row = space.order[position];
        return work.combines() ? row : row / work.k;
    };
    if (positions.size() == 1) {
        return {{work.kind(), made, stride, work.inputs.rows().bundle}, source(positions.begin)};
    }
    for (std::int64_t i = 0; i < positions.size(); ++i) {
        const std::int64_t from = source(positions.begin + i);
        if (work.kind() == InputKind::bytes) {
            const ByteRows rows = work.inputs.rows().byte_rows(const_cast<std::byte*>(made));
            to.byte_rows(space.gathered).copy(i, rows, from);
        } else {
            const std::int64_t bytes = work.kind() == InputKind::as_it_is ? work.op.x.size(1) * 4 : to.row_bytes();
            std::memcpy(space.gathered + i * to.row_bytes(), made + from * stride, static_cast<std::size_t>(bytes));
        }
    }
    return {{work.kind(), space.gathered, to.row_bytes(), to.bundle}, 0};
}

/// Some outputs of some rows of an expert. to(position): where the results of the row there go, from the first output.
template <class To>
void multiply_step(const Work& work, const Space& space, const Gathered& x, std::int64_t expert, Range positions,
                   Range outputs, const To& to) {
    const ExpertLinear& op = work.op;
    const Weight* weights = op.weights.data() + expert * op.matrices;
    const Item item{{x.first, x.first + positions.size()}, outputs};
    if (!work.buffered()) {
        return multiply(x.rows, weights[0], nullptr, item, {to(positions.begin), work.waiting, false}, space.saved);
    }
    const std::int64_t stride = outputs.size();
    for (std::int64_t i = 0; i < op.matrices; ++i) {
        multiply(x.rows, weights[i], nullptr, item,
                 {space.buffer + static_cast<std::size_t>(i) * space.part, stride, false}, space.saved);
    }
    with_activation(op.activation, [&]<class Function>(Function) {
        for (std::int64_t i = 0; i < positions.size(); ++i) {
            const float* y = space.buffer + i * stride;
            const float* other = op.matrices == 2 ? y + space.part : nullptr;
            activate<Function>(y, other, to(positions.begin + i), stride, {});
        }
    });
}

/// Goes through the items of an op, some outputs after the other.
class Items {
  public:
    Items(const Work& work, const Space& space, const std::byte* made, std::int64_t used, const Lane& lane)
        : work_(work), space_(space), made_(made), used_(used), lane_(lane), ticket_(lane.take()) {}

    /// Those that this lane gets. to(position, output): where that result goes.
    template <class To>
    void run(Range outputs, const To& to) {
        for (std::int64_t e = 0; e < work_.experts; ++e) {
            const Range positions{space_.starts[e], space_.starts[e + 1]};
            if (positions.size() == 0) continue;
            const std::int64_t n = work_.item_rows(positions.size());
            const std::int64_t width = work_.item_outputs(positions.size(), used_);
            const std::int64_t blocks = (positions.size() + n - 1) / n;  // of rows; neighbours read the same weights
            const std::int64_t items = (outputs.size() + width - 1) / width * blocks;
            for (; ticket_ < first_ + items; ticket_ = lane_.take()) {
                const std::int64_t p = positions.begin + (ticket_ - first_) % blocks * n;
                const std::int64_t o = outputs.begin + (ticket_ - first_) / blocks * width;
                item(e, {p, std::min(positions.end, p + n)}, {o, std::min(outputs.end, o + width)},
                     work_.step(positions.size(), used_), to);
            }
            first_ += items;
        }
    }

  private:
    template <class To>
    void item(std::int64_t expert, Range positions, Range outputs, std::int64_t step, const To& to) const {
        const Gathered x = gather(work_, space_, made_, positions);
        for (std::int64_t o = outputs.begin; o < outputs.end; o += step) {
            multiply_step(work_, space_, x, expert, positions, {o, std::min(outputs.end, o + step)},
                          [&](std::int64_t position) { return to(position, o); });
        }
    }

    const Work& work_;
    const Space& space_;
    const std::byte* made_;
    std::int64_t used_;
    const Lane& lane_;
    std::int64_t ticket_;
    std::int64_t first_ = 0;  // the next expert's first item
};

/// to[0, n) += Σᵢ weights[i] · (results of row first + i), in that order.
void add_results(const Work& work, const Space& space, const float* results, std::int64_t first, float* to,
                 std::int64_t n) {
    const float* weights = work.op.route_weights.data<float>() + first;
    for (std::int64_t c = 0; c < n; c += Vec::width) {
        const int count = static_cast<int>(std::min<std::int64_t>(Vec::width, n - c));
        const auto part = [&](const float* from) {
            return count == Vec::width ? load(from) : load_partial(from, count);
        };
        Vec total = zero();
        for (std::int64_t i = 0; i < work.k; ++i) {
            const float* result = results + space.positions[first + i] * work.waiting + c;
            total = fma(broadcast(weights[i]), part(result), total);
        }
        total = part(to + c) + total;
        count == Vec::width ? store(to + c, total) : store_partial(to + c, total, count);
    }
}

/// This lane's share of the additions: `results` holds some outputs of all rows.
void add_up(const Work& work, const Space& space, const float* results, Range outputs, const Lane& lane) {
    const Tensor& out = work.op.out;
    const std::int64_t blocks = (outputs.size() + added_outputs - 1) / added_outputs;
    const Range share = lane.share(out.size(0) * blocks);
    for (std::int64_t i = share.begin; i < share.end; ++i) {
        const std::int64_t token = i / blocks, o = i % blocks * added_outputs;
        add_results(work, space, results + o, token * work.k,
                    out.data<float>() + token * out.stride(0) + outputs.begin + o,
                    std::min(added_outputs, outputs.size() - o));
    }
}

}  // namespace

Scratch scratch_of(const ExpertLinear& op, int lanes) {
    const Work work(op, lanes);
    Scratch scratch = work.inputs.scratch();
    scratch.own = round_up_size(scratch.own) + Space(work, nullptr).bytes;
    scratch.shared = round_up_size(scratch.shared) + work.halves() * work.waiting_floats() * sizeof(float);
    return scratch;
}

void run(const ExpertLinear& op, const Lane& lane) {
    const Work work(op, lane.count);
    const Space space(work, lane.own + round_up_size(work.inputs.scratch().own));
    const std::byte* made = work.inputs.make(lane);
    Items items(work, space, made, sort_rows(work, space), lane);
    if (!work.combines()) {
        float* out = op.out.data<float>();
        items.run({0, work.outputs}, [&](std::int64_t position, std::int64_t output) {
            return out + space.order[position] * op.out.stride(0) + output;
        });
        return;
    }
    float* results = reinterpret_cast<float*>(lane.shared + round_up_size(work.inputs.scratch().shared));
    float* other = results + (work.halves() - 1) * work.waiting_floats();
    for (std::int64_t o = 0; o < work.outputs; o += work.waiting) {
        const Range outputs{o, std::min(work.outputs, o + work.waiting)};
        items.run(outputs, [&](std::int64_t position, std::int64_t output) {
            return results + position * work.waiting + (output - o);
        });
        lane.wait();
        add_up(work, space, results, outputs, lane);
        std::swap(results, other);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
