// The machine's own limits, measured with the instructions the kernels use: what benchmarks hold the kernels against.
//
// Each function is called by python/fermi/bench/ceiling.py through ctypes and runs once; the caller repeats and takes
// medians.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cpu/bytes.h"
#include "cpu/product.h"
#include "cpu/simd.h"
#include "export.h"
#include "thread_pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Wall time in seconds of one run of work(lane) on all lanes.
template <class Work>
double time_of(ThreadPool& pool, Work work) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    pool.run(work);
    return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Keeps the compiler from dropping what led to `value`.
void keep(Vec value) {
    volatile float sink = sum(value);
    static_cast<void>(sink);
}

/// Reads memory of its own, again and again.
class Reader {
  public:
    Reader(int threads, std::size_t bytes)
        : pool_(threads),
          floats_(bytes / sizeof(float) / static_cast<std::size_t>(threads) / step * step),
          memory_(
              static_cast<float*>(std::aligned_alloc(huge_page, (bytes_all() + huge_page - 1) / huge_page * huge_page)),
              &std::free) {
#if defined(__linux__)
        if (memory_) madvise(memory_.get(), bytes_all(), MADV_HUGEPAGE);  // as weights and caches are, where it can be
#endif
        if (memory_) time_of(pool_, [this](int lane) { std::fill_n(part(lane), floats_, 1.0F); });
    }

    /// Bytes per second; 0 when there was no memory.
    double run() {
        if (!memory_) return 0.0;
        return static_cast<double>(bytes_all()) / time_of(pool_, [this](int lane) { read(part(lane)); });
    }

  private:
    static constexpr std::size_t huge_page = std::size_t{2} << 20;
    static constexpr std::size_t streams = 8;
    static constexpr std::size_t step = 1024;  // floats: whole pages

    std::size_t bytes_all() const { return floats_ * sizeof(float) * static_cast<std::size_t>(pool_.size()); }
    float* part(int lane) const { return memory_.get() + floats_ * static_cast<std::size_t>(lane); }
    void read(const float* from) const {
        Vec sums[streams];
        std::fill_n(sums, streams, zero());
        for (std::size_t i = 0; i < floats_; i += streams * Vec::width) {
            for (std::size_t s = 0; s < streams; ++s) sums[s] = sums[s] + load(from + i + s * Vec::width);
        }
        for (const Vec& value : sums) keep(value);
    }

    ThreadPool pool_;
    std::size_t floats_;  // of each lane
    std::unique_ptr<float, decltype(&std::free)> memory_;
};

/// Operations per second of Dot's multiply-adds, on operands in registers.
template <class Dot, class W>
double product_rate(int threads, int rounds) {
    constexpr int N = tile_rows * tile_columns;
    ThreadPool pool(threads);
    // Numbers that the compiler cannot know.
    W w_memory[Dot::step];
    typename Dot::X x_memory[Dot::step];
    std::memset(w_memory, rounds & 1, sizeof w_memory);
    std::memset(x_memory, rounds & 1, sizeof x_memory);
    const double seconds = time_of(pool, [&](int) {
        const auto w = Dot::load_w(w_memory);
        const auto x = Dot::load_x(x_memory);
        Vec sums[N];
#pragma GCC unroll 32
        for (int n = 0; n < N; ++n) sums[n] = broadcast(static_cast<float>(rounds + n));  // all different
        for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
            for (int n = 0; n < N; ++n) sums[n] = Dot::accumulate(x, w, sums[n]);
        }
        Vec total = zero();
#pragma GCC unroll 32
        for (int n = 0; n < N; ++n) total = total + sums[n];
        keep(total);
    });
    return 2.0 * Dot::step * N * rounds * threads / seconds;
}

/// Operations per second of products of bytes, on operands in registers.
double byte_product_rate(int threads, int rounds) {
    constexpr int N = tile_rows * tile_columns;
    ThreadPool pool(threads);
    std::int8_t bytes[4 * Vec::width];  // numbers that the compiler cannot know
    std::memset(bytes, rounds & 1, sizeof bytes);
    const double seconds = time_of(pool, [&](int) {
        const ByteVec w = FastByteDot::signed_weights(load_bytes(bytes));
        const ByteVec x = load_bytes(bytes);
        IntVec sums[N];
#pragma GCC unroll 32
        for (int n = 0; n < N; ++n) sums[n] = repeat(rounds + n);  // all different
        for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
            for (int n = 0; n < N; ++n) sums[n] = FastByteDot::add(w, x, sums[n]);
        }
        Vec total = zero();
#pragma GCC unroll 32
        for (int n = 0; n < N; ++n) total = total + to_float(sums[n]);
        keep(total);
    });
    return 2.0 * sizeof bytes * N * rounds * threads / seconds;
}

}  // namespace

}  // namespace fermi::cpu::FERMI_ISA

extern "C" {

/// A reader of `bytes` of memory with `threads` threads; released by fermi_ceiling_close.
FERMI_API void* fermi_ceiling_open(int threads, std::size_t bytes) {
    return new fermi::cpu::FERMI_ISA::Reader(threads, bytes);
}

/// Bytes per second of one pass over a reader's memory.
FERMI_API double fermi_ceiling_read(void* reader) {
    return static_cast<fermi::cpu::FERMI_ISA::Reader*>(reader)->run();
}

FERMI_API void fermi_ceiling_close(void* reader) {
    delete static_cast<fermi::cpu::FERMI_ISA::Reader*>(reader);
}

/// Operations per second of f32 multiply-adds.
FERMI_API double fermi_ceiling_f32(int threads, int rounds) {
    using namespace fermi::cpu::FERMI_ISA;
    return product_rate<FloatDot<float>, float>(threads, rounds);
}

/// Operations per second of products of bf16 pairs; 0 where the machine has none.
FERMI_API double fermi_ceiling_bf16(int threads, int rounds) {
    using namespace fermi::cpu::FERMI_ISA;
    if constexpr (has_bf16_dot) {
        if (bf16_dot_usable()) return product_rate<BFloat16Dot, bf16>(threads, rounds);
    }
    static_cast<void>(threads);
    static_cast<void>(rounds);
    return 0.0;
}

/// Operations per second of products of bytes: four to a sum, as fast as the machine can; 0 where it would need an
/// instruction that it has not.
FERMI_API double fermi_ceiling_int8(int threads, int rounds) {
    using namespace fermi::cpu::FERMI_ISA;
    return fast_byte_dot_usable() ? byte_product_rate(threads, rounds) : 0.0;
}

/// Seconds of one barrier between `threads` threads.
FERMI_API double fermi_ceiling_barrier(int threads, int rounds) {
    fermi::ThreadPool pool(threads);
    fermi::Barrier barrier(threads);
    const auto wait = [&](int) {
        for (int i = 0; i < rounds; ++i) barrier.wait();
    };
    return fermi::cpu::FERMI_ISA::time_of(pool, wait) / rounds;
}
}
