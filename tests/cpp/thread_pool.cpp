// The pool and its barrier; the interesting run is the one under the thread sanitizer.
#include "thread_pool.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ctime>
#include <thread>
#include <vector>

#include "error.h"

namespace fermi {
namespace {

TEST(ThreadPool, RunsEveryLaneOnce) {
    for (const int size : {1, 2, 3, 8}) {
        ThreadPool pool(size);
        EXPECT_EQ(pool.size(), size);
        std::vector<int> visits(static_cast<std::size_t>(size));
        for (int round = 0; round < 200; ++round) {
            auto lane = [&](int index) { ++visits[static_cast<std::size_t>(index)]; };
            pool.run(lane);
        }
        EXPECT_EQ(visits, std::vector<int>(static_cast<std::size_t>(size), 200));
    }
}

TEST(ThreadPool, RefusesNoThreads) {
    EXPECT_THROW(ThreadPool(0), InvalidArgument);
    EXPECT_THROW(Barrier(0), InvalidArgument);
}

TEST(ThreadPool, BarrierPublishesWhatCameBefore) {
    constexpr int size = 4;  // more lanes than this machine may have cores: waiting must yield
    constexpr int phases = 300;
    ThreadPool pool(size);
    Barrier barrier(size);
    std::vector<int> values(size);
    std::vector<int> wrong(size);
    auto lane = [&](int index) {
        const auto own = static_cast<std::size_t>(index);
        for (int phase = 1; phase <= phases; ++phase) {
            values[own] = phase;
            barrier.wait();
            for (const int value : values) wrong[own] += value != phase;
            barrier.wait();
        }
    };
    pool.run(lane);
    EXPECT_EQ(wrong, std::vector<int>(size));
}

TEST(ThreadPool, QueuesRunsOfSeveralThreads) {
    ThreadPool pool(3);
    int count = 0;  // not atomic: runs must not meet
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&] {
            for (int round = 0; round < 100; ++round) {
                auto lane = [&](int index) {
                    if (index == 0) ++count;
                };
                pool.run(lane);
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(count, 400);
}

TEST(ThreadPool, StartsAndStopsAtAnyMoment) {
    for (int round = 0; round < 50; ++round) {
        ThreadPool pool(3);
        auto lane = [](int) {};
        if (round % 2 == 0) pool.run(lane);
    }
}

double cpu_seconds() {
    timespec time{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

TEST(ThreadPool, SleepsWhenIdle) {
    ThreadPool pool(4);
    auto lane = [](int) {};
    pool.run(lane);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // beyond its spinning
    const double before = cpu_seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    EXPECT_LT(cpu_seconds() - before, 0.05);
}

// Neither the thread sanitizer nor qemu starts threads in the child of a fork.
#if !defined(__SANITIZE_THREAD__) && !defined(FERMI_EMULATED)
TEST(ThreadPool, WorksInTheChildOfAFork) {
    ThreadPool pool(3);
    int sum = 0;
    auto warm = [](int) {};
    pool.run(warm);
    const pid_t child = fork();
    if (child == 0) {
        std::atomic<int> lanes{0};
        auto lane = [&](int index) { lanes += index + 1; };
        pool.run(lane);
        _exit(lanes == 6 ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    auto lane = [&](int index) {
        if (index == 0) ++sum;
    };
    pool.run(lane);
    EXPECT_EQ(sum, 1);
}
#endif

}  // namespace
}  // namespace fermi
