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
    /// Takes the scratch memory that the neediest op wants. Throws OutOfMemory.
    ListProgram(std::vector<Op> ops, std::shared_ptr<ThreadPool> pool, Allocator& allocator);

    void run() override;

  private:
    void run_lane(int index);

    std::size_t lanes() const { return static_cast<std::size_t>(pool_->size()); }

    std::vector<Op> ops_;
    std::shared_ptr<ThreadPool> pool_;
    std::vector<Tickets> tickets_;  // ops × lanes
    Barrier barrier_;
    std::shared_ptr<Storage> shared_;
    std::shared_ptr<Storage> own_;  // lanes × own_bytes_
    std::size_t own_bytes_ = 0;
    std::vector<Counter> counters_;
};

}  // namespace fermi::cpu::FERMI_ISA
