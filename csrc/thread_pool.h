// Threads that run one function together, one lane each, with barriers between its phases.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "export.h"

namespace fermi {

/// Lanes wait for each other: spins briefly, then yields, so that more threads than cores still make progress.
class FERMI_API Barrier {
  public:
    explicit Barrier(int count);
    void wait();

  private:
    alignas(64) std::atomic<int> waiting_{0};
    alignas(64) std::atomic<std::uint32_t> generation_{0};
    int count_;
};

/// `size` lanes: the calling thread is lane 0, the others sleep between runs (an idle pool uses no CPU).
class FERMI_API ThreadPool {
  public:
    using Function = void (*)(void* context, int lane);

    /// `size` ≥ 1. Throws Error when the threads cannot be started.
    explicit ThreadPool(int size);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const;
    /// Calls function(context, lane) on every lane and returns when all are done. The function must not throw.
    /// Safe from several threads: runs queue one behind the other.
    void run(Function function, void* context);
    template <class Callable>
    void run(Callable& callable) {
        run([](void* context, int lane) { (*static_cast<Callable*>(context))(lane); }, &callable);
    }

  private:
    struct State;
    std::unique_ptr<State> state_;
};

/// Physical cores this process may run on (affinity and cgroup quota respected), at least 1.
FERMI_API int physical_cores();

}  // namespace fermi
