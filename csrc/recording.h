// A list of ops described once and run as often as wanted, with the memory of its intermediate results.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <ostream>
#include <vector>

#include "backend.h"
#include "export.h"
#include "ops.h"

namespace fermi {

class Arena;
class IndexChecks;

class FERMI_API Recording {
  public:
    explicit Recording(std::shared_ptr<Backend> backend, Numerics numerics = Numerics::fast);
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

    /// Makes this the thread's open recording. Throws InvalidArgument if one is open, or if this one was closed before.
    void open();
    /// Ends the description and allocates the arena. A recording that is closed by an exception cannot run.
    void close(bool failed = false);
    /// The thread's open recording, or null.
    static Recording* current();

    /// Adds an op. Throws InvalidArgument for tensors of another device or of another recording still open.
    void append(Op op);
    /// Memory for an output: a lease on the arena.
    Tensor allocate(DType dtype, const Dims& shape);

    /// Lowers once for repeated runs. `run` does it on demand.
    void compile();
    /// Checks the values of index tensors (on the CPU), then runs every op. Calls from several threads queue.
    void run();

    const std::vector<Op>& ops() const { return *ops_; }
    const std::shared_ptr<Backend>& backend() const { return backend_; }
    Numerics numerics() const { return numerics_; }
    /// Bytes of the arena.
    std::size_t workspace_bytes() const;

  private:
    enum class State : std::uint8_t { fresh, open, closed, failed };

    void lower();

    std::shared_ptr<Backend> backend_;
    Numerics numerics_;
    State state_ = State::fresh;
    std::shared_ptr<Arena> arena_;
    std::shared_ptr<std::vector<Op>> ops_ = std::make_shared<std::vector<Op>>();  // the program's too
    std::unique_ptr<IndexChecks> checks_;
    std::unique_ptr<Program> program_;
    std::mutex running_;
};

/// One line per op.
FERMI_API std::ostream& operator<<(std::ostream& stream, const Recording& recording);

}  // namespace fermi
