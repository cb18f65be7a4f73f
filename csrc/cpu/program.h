// A lowered recording: one entry into the thread pool, the ops one after the other, all lanes on each.
#pragma once

#include <memory>
#include <vector>

#include "backend.h"
#include "cpu/allocator.h"
#include "cpu/lane.h"

namespace fermi::cpu::FERMI_ISA {

class ListProgram final : public Program {
  public:
    /// On so many of the pool's lanes: all, or the calling thread alone.
    ListProgram(std::shared_ptr<const std::vector<Op>> ops, std::shared_ptr<ThreadPool> pool,
                std::shared_ptr<Allocator> allocator, int lanes);

    /// Throws OutOfMemory when there is no scratch memory for the neediest op. It is borrowed: programs that run one
    /// after the other share it.
    void run() override;

  private:
    /// Scratch memory: `shared` of all lanes, `own` of each, one after the other.
    void run_lane(int index, std::byte* shared, std::byte* own);

    std::shared_ptr<const std::vector<Op>> ops_;
    std::shared_ptr<ThreadPool> pool_;
    std::shared_ptr<Allocator> allocator_;
    int lanes_;
    std::vector<Tickets> tickets_;  // ops × lanes
    Barrier barrier_;
    std::size_t shared_bytes_ = 0;
    std::size_t own_bytes_ = 0;
    std::vector<Counter> counters_;
};

/// How many lanes of `most` are worth waking for a list of ops.
int lanes_for(const std::vector<Op>& ops, int most);

}  // namespace fermi::cpu::FERMI_ISA
