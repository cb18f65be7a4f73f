// Loops over the logits of a vocabulary, compiled for several instruction sets; the processor chooses when it loads
// them.
//
// They are plain C++ that compilers turn into vector code. Sums are made by halves, whatever the instruction set: the
// token drawn does not depend on it (built with -ffp-contract=off). Order is total: larger
// logit first, then lower token id; NaN counts as minus infinity, plus infinity as the largest number.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__ELF__) && defined(__GLIBC__)
#define FERMI_EACH_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FERMI_EACH_ISA
#endif

namespace fermi::sampler {

constexpr int chunk = 128;  // logits per maximum and per mass

inline float bounded(float logit) {
    const float low = logit > -INFINITY ? logit : -INFINITY;
    return low < FLT_MAX ? low : FLT_MAX;
}

/// Larger for larger logits, then for lower ids. The logit is bounded.
inline std::uint64_t order_key(float logit, std::int64_t token) {
    const float zeroed = logit + 0.0F;  // -0.0 equals 0.0
    std::uint32_t bits;
    std::memcpy(&bits, &zeroed, sizeof bits);
    bits = bits >> 31 != 0 ? ~bits : bits | 0x80000000U;
    return static_cast<std::uint64_t>(bits) << 32 | (0xFFFFFFFFU - static_cast<std::uint32_t>(token));
}

inline std::int64_t key_token(std::uint64_t key) {
    return 0xFFFFFFFFU - static_cast<std::uint32_t>(key);
}

/// Of the key 0, which is below all: minus infinity.
inline float key_logit(std::uint64_t key) {
    if (key == 0) return -INFINITY;
    std::uint32_t bits = static_cast<std::uint32_t>(key >> 32);
    bits = bits >> 31 != 0 ? bits & 0x7FFFFFFFU : ~bits;
    float logit;
    std::memcpy(&logit, &bits, sizeof logit);
    return logit;
}

/// e^x for x <= 0 to 1e-7 relative; 0 below -87 and for NaN.
inline float exp_negative(float x) {
    const float clamped = x > -87.0F ? x : -87.0F;
    const auto power = static_cast<std::int32_t>(clamped * 1.44269504F - 0.5F);  // to nearest, as it is not positive
    const auto n = static_cast<float>(power);
    const float r = (clamped - n * 0.693359375F) - n * -2.12194440e-4F;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = p * r * r + r + 1.0F;
    std::int32_t bits = (power + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    p *= scale;
    std::memcpy(&bits, &p, sizeof bits);
    bits &= -static_cast<std::int32_t>(x > -87.0F);  // a branch would keep loops from becoming vector code
    std::memcpy(&p, &bits, sizeof p);
    return p;
}

/// Calls work(context, lane) on as many threads as lanes, this one among them, and waits for all. The work throws
/// nothing.
inline void run_lanes(int lanes, void (*work)(void*, int), void* context) {
    std::vector<std::thread> threads;
    for (int lane = 1; lane < lanes; ++lane) {
        try {
            threads.emplace_back(work, context, lane);
        } catch (const std::exception&) {  // there is no thread to be had
            work(context, lane);
        }
    }
    work(context, 0);
    for (std::thread& thread : threads) thread.join();
}

inline std::int64_t chunks_of(std::int64_t vocab) {
    return (vocab + chunk - 1) / chunk;
}

/// The logits of a chunk, whole: past the vocabulary's end they are minus infinity, in `padding` [chunk].
inline const float* whole_chunk(const float* logits, std::int64_t vocab, std::int64_t start, float* padding) {
    if (start + chunk <= vocab) return logits + start;
    for (int i = 0; i < chunk; ++i) padding[i] = start + i < vocab ? logits[start + i] : -INFINITY;
    return padding;
}

/// Sum of n numbers, a power of two, which it overwrites: half is added to half, until one is left.
template <int n>
inline float fold_sum(float* values) {
    for (int i = 0; i < n / 2; ++i) values[i] += values[i + n / 2];
    if constexpr (n > 2) return fold_sum<n / 2>(values);
    return values[0];
}

template <int n>
inline float fold_max(float* values) {
    for (int i = 0; i < n / 2; ++i) values[i] = values[i + n / 2] > values[i] ? values[i + n / 2] : values[i];
    if constexpr (n > 2) return fold_max<n / 2>(values);
    return values[0];
}

/// All bits set where the token comes no later than token `until` of logit `least` in the order, else none.
inline std::int32_t precedes(float logit, std::int32_t token, float least, std::int32_t until) {
    return -static_cast<std::int32_t>(logit > least) |
           (-static_cast<std::int32_t>(logit == least) & -static_cast<std::int32_t>(token <= until));
}

/// out [vocab]: the logits, bounded.
FERMI_EACH_ISA static void copy_bounded(const float* __restrict logits, std::int64_t vocab, float* __restrict out) {
    for (std::int64_t i = 0; i < vocab; ++i) out[i] = bounded(logits[i]);
}

/// Minus infinity where bit `token % 32` of word `token / 32` is not set.
FERMI_EACH_ISA static void apply_mask(float* __restrict logits, std::int64_t vocab,
                                      const std::uint32_t* __restrict mask) {
    for (std::int64_t word = 0; word < vocab / 32; ++word) {
        const std::uint32_t bits = mask[word];
        float* part = logits + 32 * word;
        for (std::uint32_t i = 0; i < 32; ++i) part[i] = (bits & (1U << i)) != 0 ? part[i] : -INFINITY;
    }
    for (std::int64_t i = vocab / 32 * 32; i < vocab; ++i) {
        if ((mask[i / 32] >> (i % 32) & 1U) == 0) logits[i] = -INFINITY;
    }
}

/// maxima [chunks]: the largest logit of each chunk, bounded. Returns the largest of all.
FERMI_EACH_ISA static float find_maxima(const float* __restrict logits, std::int64_t vocab, float* __restrict maxima) {
    float padding[chunk];
    float largest = -INFINITY;
    for (std::int64_t c = 0; c < chunks_of(vocab); ++c) {
        const float* part = whole_chunk(logits, vocab, c * chunk, padding);
        float best[chunk / 2];
        for (int i = 0; i < chunk / 2; ++i)
            best[i] = bounded(part[i] > part[i + chunk / 2] ? part[i] : part[i + chunk / 2]);
        maxima[c] = fold_max<chunk / 2>(best);
        largest = maxima[c] > largest ? maxima[c] : largest;
    }
    return largest;
}

/// weights [chunks * chunk]: e^((logit - largest) * scale), 0 past the vocabulary. masses [chunks]: their sums. Returns
/// the sum of all. No logit is above the largest.
FERMI_EACH_ISA static double weigh(const float* __restrict logits, std::int64_t vocab, float largest, float scale,
                                   float* __restrict weights, double* __restrict masses) {
    float padding[chunk];
    double total = 0;
    for (std::int64_t c = 0; c < chunks_of(vocab); ++c) {
        const float* part = whole_chunk(logits, vocab, c * chunk, padding);
        float* out = weights + c * chunk;
        float sums[chunk / 2];
        for (int i = 0; i < chunk; ++i) out[i] = exp_negative((part[i] - largest) * scale);
        for (int i = 0; i < chunk / 2; ++i) sums[i] = out[i] + out[i + chunk / 2];
        masses[c] = static_cast<double>(fold_sum<chunk / 2>(sums));
        total += masses[c];
    }
    return total;
}

/// masses [chunks]: the weights of the tokens whose order key is at least `cut`. Returns their sum. No logit is
/// infinite.
FERMI_EACH_ISA static double weigh_kept(const float* __restrict logits, std::int64_t vocab, std::uint64_t cut,
                                        const float* __restrict weights, double* __restrict masses) {
    const float least = key_logit(cut);
    const auto last = static_cast<std::int32_t>(key_token(cut) < vocab ? key_token(cut) : vocab);
    float padding[chunk];
    double total = 0;
    for (std::int64_t c = 0; c < chunks_of(vocab); ++c) {
        const float* part = whole_chunk(logits, vocab, c * chunk, padding);
        const float* weight = weights + c * chunk;
        const std::int32_t until = last - static_cast<std::int32_t>(c * chunk);  // of the tokens that equal the least
        float kept[chunk];
        for (int i = 0; i < chunk; ++i) {
            std::int32_t bits;
            std::memcpy(&bits, weight + i, sizeof bits);
            bits &= precedes(part[i], i, least, until);
            std::memcpy(kept + i, &bits, sizeof bits);
        }
        masses[c] = static_cast<double>(fold_sum<chunk>(kept));
        total += masses[c];
    }
    return total;
}

/// How many tokens come before this one, whose logit is bounded.
FERMI_EACH_ISA static std::int64_t count_before(const float* __restrict logits, std::int64_t vocab, float logit,
                                                std::int64_t token) {
    float padding[chunk];
    std::int64_t count = 0;
    for (std::int64_t c = 0; c < chunks_of(vocab); ++c) {
        const float* part = whole_chunk(logits, vocab, c * chunk, padding);
        const auto until = static_cast<std::int32_t>(token - c * chunk) - 1;
        std::int32_t before = 0;
        for (int i = 0; i < chunk; ++i) before -= precedes(bounded(part[i]), i, logit, until);
        count += before;
    }
    return count;
}

/// A division of logits into bins of equal width, the largest logits in bin 0: those of a larger logit never come
/// later.
struct Bins {
    static constexpr int count = 2816;  // of 1/32 at first: as far as weights are above 0, and the rest in the last
    float largest;
    float scale;
    float offset = 0;    // what lies before it is in bin 0
    float density = 32;  // bins for a distance of 1, over the temperature
};

/// The bin of each logit of a chunk, none of which is plus infinity.
inline void bins_of(const Bins& bins, const float* __restrict part, std::int16_t* __restrict bin) {
    for (int i = 0; i < chunk; ++i) {
        float place = ((bins.largest - part[i]) * bins.scale - bins.offset) * bins.density + 1.0F;
        place = place < Bins::count - 1 ? place : Bins::count - 1;
        place = place > 0.0F ? place : 0.0F;
        bin[i] = static_cast<std::int16_t>(static_cast<std::int32_t>(place));
    }
}

/// places [chunks * chunk]: the bin of each token. masses [Bins::count]: how much the tokens of a bin weigh together.
FERMI_EACH_ISA static void weigh_bins(const float* __restrict logits, std::int64_t vocab, const Bins& bins,
                                      const float* __restrict weights, std::int16_t* __restrict places,
                                      double* __restrict masses) {
    float padding[chunk];
    double odd[Bins::count] = {};  // of every other token: neighbours of one bin then do not wait for each other
    for (std::int64_t c = 0; c < chunks_of(vocab); ++c) {
        std::int16_t* bin = places + c * chunk;
        const float* weight = weights + c * chunk;
        bins_of(bins, whole_chunk(logits, vocab, c * chunk, padding), bin);
        for (int i = 0; i < chunk; i += 2) {
            masses[bin[i]] += static_cast<double>(weight[i]);
            odd[bin[i + 1]] += static_cast<double>(weight[i + 1]);
        }
    }
    for (int bin = 0; bin < Bins::count; ++bin) masses[bin] += odd[bin];
}

/// places [chunks * chunk]: the bin of each token. counts [Bins::count]: how many tokens each bin has.
FERMI_EACH_ISA static void count_bins(const float* __restrict logits, std::int64_t vocab, const Bins& bins,
                                      std::int16_t* __restrict places, double* __restrict counts) {
    float padding[chunk];
    for (std::int64_t c = 0; c < chunks_of(vocab); ++c) {
        std::int16_t* bin = places + c * chunk;
        bins_of(bins, whole_chunk(logits, vocab, c * chunk, padding), bin);
        for (int i = 0; i < chunk; ++i) counts[bin[i]] += 1.0;
    }
}

/// keys: the order keys of a bin's tokens. False, before the end, where they are more than `most`.
FERMI_EACH_ISA static bool collect_bin(const float* __restrict logits, std::int64_t vocab,
                                       const std::int16_t* __restrict places, std::int16_t wanted, std::size_t most,
                                       std::vector<std::uint64_t>& keys) {
    keys.clear();
    for (std::int64_t c = 0; c < chunks_of(vocab); ++c) {
        const std::int16_t* bin = places + c * chunk;
        std::int16_t found = 0;
        for (int i = 0; i < chunk; ++i) found = static_cast<std::int16_t>(found + (bin[i] == wanted));
        for (int i = 0; found > 0; ++i) {
            if (bin[i] != wanted) continue;
            --found;
            const std::int64_t token = c * chunk + i;
            if (token < vocab) keys.push_back(order_key(bounded(logits[token]), token));
        }
        if (keys.size() > most) return false;
    }
    return true;
}

}  // namespace fermi::sampler
