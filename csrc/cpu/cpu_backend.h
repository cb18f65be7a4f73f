// The CPU as a backend.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "cpu/allocator.h"
#include "thread_pool.h"

namespace fermi::cpu::FERMI_ISA {

/// Owns a thread pool and an allocator; programs and storages keep what they need of them alive.
class CpuBackend final : public Backend {
  public:
    /// Throws BackendError for a negative number of threads or a device index other than 0.
    explicit CpuBackend(const BackendOptions& options);

    Device device() const override { return {}; }
    std::string description() const override;
    std::string architecture() const override;
    int threads() const override { return pool_->size(); }

    std::shared_ptr<Storage> allocate(std::size_t bytes) override { return allocator_->allocate(bytes); }
    void copy(const Tensor& destination, const Tensor& source) override;
    void launch(const Op& op) override;
    std::unique_ptr<Program> lower(std::shared_ptr<const std::vector<Op>> ops) override;
    void synchronize() override {}
    MemoryInfo memory() const override;

  private:
    std::shared_ptr<Allocator> allocator_;
    std::shared_ptr<ThreadPool> pool_;
};

Backend* create_backend(const BackendOptions& options);

}  // namespace fermi::cpu::FERMI_ISA
