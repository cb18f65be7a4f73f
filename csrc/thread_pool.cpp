// Lanes that sleep when idle and spin only as long as work is likely to follow.
#include "thread_pool.h"

#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "error.h"

namespace fermi {
namespace {

/// Tells the processor that this is a wait loop.
inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

constexpr int pauses_before_yield = 2000;
constexpr std::chrono::microseconds spin_before_sleep{50};

/// Waits until `value` is no longer `old`: first spinning, then asleep.
template <class T>
void wait_changed(const std::atomic<T>& value, T old) {
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start < spin_before_sleep) {
        for (int i = 0; i < 32; ++i) {
            if (value.load(std::memory_order_acquire) != old) return;
            pause();
        }
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

/// Blocks every signal on this thread while it lives, so that threads started meanwhile leave signals to the others.
class SignalsBlocked {
  public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &previous_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &previous_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

  private:
    sigset_t previous_;
};

void name_this_thread([[maybe_unused]] int lane) {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), ("fermi-" + std::to_string(lane)).c_str());
#elif defined(__APPLE__)
    pthread_setname_np(("fermi-" + std::to_string(lane)).c_str());
#endif
}

}  // namespace

Barrier::Barrier(int count) : count_(count) {
    require(count >= 1, "barrier: the count must be at least 1");
}

void Barrier::wait() {
    const std::uint32_t generation = generation_.load(std::memory_order_relaxed);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
        waiting_.store(0, std::memory_order_relaxed);
        generation_.store(generation + 1, std::memory_order_release);
        return;
    }
    for (int i = 0; generation_.load(std::memory_order_acquire) == generation; ++i) {
        if (i < pauses_before_yield) {
            pause();
        } else {
            std::this_thread::yield();
        }
    }
}

struct ThreadPool::State {
    explicit State(int lanes) : size(lanes), process(getpid()) {
        const SignalsBlocked blocked;
        try {
            for (int lane = 1; lane < size; ++lane) threads.emplace_back([this, lane] { serve(lane); });
        } catch (const std::system_error& error) {
            stop();
            throw Error(message("thread pool: cannot start thread ", threads.size() + 1, ": ", error.what()));
        }
    }

    ~State() { stop(); }
    State(const State&) = delete;
    State& operator=(const State&) = delete;

    void stop() {
        stopping.store(true, std::memory_order_relaxed);
        round.fetch_add(1, std::memory_order_release);
        round.notify_all();
        for (std::thread& thread : threads) thread.join();
        threads.clear();
    }

    void serve(int lane) {
        name_this_thread(lane);
        for (std::uint32_t seen = 0;; ++seen) {
            wait_changed(round, seen);
            if (stopping.load(std::memory_order_relaxed)) return;
            function(context, lane);
            if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) running.notify_one();
        }
    }

    void run(Function work, void* work_context) {
        const std::lock_guard lock(one_run);
        function = work;
        context = work_context;
        running.store(size - 1, std::memory_order_relaxed);
        round.fetch_add(1, std::memory_order_release);
        round.notify_all();
        work(work_context, 0);
        for (int left = running.load(std::memory_order_acquire); left != 0;
             left = running.load(std::memory_order_acquire)) {
            wait_changed(running, left);
        }
    }

    const int size;
    const pid_t process;  // threads do not survive a fork
    std::mutex one_run;
    Function function = nullptr;  // of the current round; published by `round`
    void* context = nullptr;
    alignas(64) std::atomic<std::uint32_t> round{0};
    alignas(64) std::atomic<int> running{0};  // lanes of this round not done yet, lane 0 aside
    std::atomic<bool> stopping{false};
    std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int size) {
    require(size >= 1, "thread pool: the number of threads must be at least 1, not ", size);
    state_ = std::make_unique<State>(size);
}

ThreadPool::~ThreadPool() {
    if (state_->process != getpid()) static_cast<void>(state_.release());  // a child of fork: there is nobody to join
}

int ThreadPool::size() const {
    return state_->size;
}

void ThreadPool::run(Function function, void* context) {
    if (state_->size == 1) {
        function(context, 0);
        return;
    }
    if (state_->process != getpid()) {
        // A child of fork has none of its parent's threads, and maybe a lock that one of them held: start anew.
        const int size = state_->size;
        static_cast<void>(state_.release());
        state_ = std::make_unique<State>(size);
    }
    state_->run(function, context);
}

}  // namespace fermi
