// Describing, closing and running a list of ops.
#include "recording.h"

#include <utility>

#include "arena.h"
#include "index_checks.h"
#include "operands.h"

namespace fermi {
namespace {

thread_local Recording* open_recording = nullptr;

/// Room for those of a model: an op is large, and to move them all as they become more costs more than to describe
/// them.
constexpr std::size_t usual_ops = 256;

}  // namespace

Recording::Recording(std::shared_ptr<Backend> backend, Numerics numerics)
    : backend_(std::move(backend)), numerics_(numerics), checks_(std::make_unique<IndexChecks>()) {
    require(backend_ != nullptr, "recording: there is no backend");
    arena_ = std::make_shared<Arena>(backend_->device());
}

Recording::~Recording() {
    if (open_recording == this) open_recording = nullptr;
}

Recording* Recording::current() {
    return open_recording;
}

void Recording::open() {
    require(open_recording == nullptr, "recording: another one is open on this thread");
    require(state_ == State::fresh, "recording: it was described before");
    open_recording = this;
    state_ = State::open;
    ops_->reserve(usual_ops);
}

void Recording::close(bool failed) {
    require(open_recording == this, "recording: it is not open on this thread");
    open_recording = nullptr;
    state_ = State::failed;
    if (failed) return;
    const std::lock_guard lock(running_);
    for (const Op& op : *ops_) checks_->add(op);
    for (const Op& op : *ops_) {
        visit_operands(op, [&](std::string_view name, const Tensor& tensor, Access access) {
            require(access == Access::read || !checks_->cover(tensor), name_of(op), ": ", name,
                    " overwrites indices that an op of the same recording reads");
        });
    }
    arena_->seal(backend_->allocate(arena_->bytes()));
    state_ = State::closed;
}

void Recording::append(Op op) {
    require(open_recording == this, "recording: it is not open on this thread");
    visit_operands(op, [&](std::string_view name, Tensor& tensor, Access) {
        if (!tensor.defined()) return;
        require(tensor.device() == backend_->device(), name_of(op), ": ", name, " is on ", tensor.device(),
                ", the recording on ", backend_->device());
        const bool there = tensor.storage()->data() != nullptr || tensor.elements() == 0;
        require(there || tensor.storage() == arena_, name_of(op), ": ", name,
                " belongs to another recording, which is not closed");
    });
    strip_leases(op);
    ops_->push_back(std::move(op));
}

Tensor Recording::allocate(DType dtype, const Dims& shape) {
    require(open_recording == this, "recording: it is not open on this thread");
    auto [offset, lease] = Arena::take(arena_, contiguous_bytes(dtype, shape));
    return {arena_, dtype, shape, contiguous_strides(shape), offset, std::move(lease)};
}

void Recording::compile() {
    const std::lock_guard lock(running_);
    lower();
}

void Recording::run() {
    const std::lock_guard lock(running_);
    lower();
    checks_->run();
    program_->run();
}

void Recording::lower() {
    require(state_ != State::fresh && state_ != State::open, "recording: it is not described to its end");
    require(state_ == State::closed, "recording: an error ended its description");
    if (program_ == nullptr) program_ = backend_->lower(ops_);
}

std::size_t Recording::workspace_bytes() const {
    return arena_->bytes();
}

std::ostream& operator<<(std::ostream& stream, const Recording& recording) {
    for (const Op& op : recording.ops()) stream << op << '\n';
    return stream;
}

}  // namespace fermi
