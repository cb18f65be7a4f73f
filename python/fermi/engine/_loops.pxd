# cython: language_level=3
"""The loops over a vocabulary: see _loops.h, which says what they do and in which order."""

from libc.stdint cimport int16_t, int32_t, int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

cdef extern from "_loops.h" namespace "fermi::sampler" nogil:
    enum:
        CHUNK "fermi::sampler::chunk"
    float bounded(float logit) noexcept
    uint64_t order_key(float logit, int64_t token) noexcept
    int64_t key_token(uint64_t key) noexcept
    float key_logit(uint64_t key) noexcept
    float exp_negative(float x) noexcept
    int64_t chunks_of(int64_t vocab) noexcept
    void copy_bounded(const float* logits, int64_t vocab, float* out) noexcept
    void apply_mask(float* logits, int64_t vocab, const uint32_t* mask) noexcept
    float find_maxima(const float* logits, int64_t vocab, float* maxima) noexcept
    double weigh(
        const float* logits, int64_t vocab, float largest, float scale, float* weights, double* masses
    ) noexcept
    double weigh_kept(
        const float* logits, int64_t vocab, uint64_t cut, const float* weights, double* masses
    ) noexcept
    int64_t count_before(const float* logits, int64_t vocab, float logit, int64_t token) noexcept

    void run_lanes(int lanes, void (*work)(void*, int) noexcept nogil, void* context) noexcept

    cdef cppclass Bins:
        float largest
        float scale
        float offset
        float density
    enum:
        BINS "fermi::sampler::Bins::count"
    void weigh_bins(
        const float* logits, int64_t vocab, const Bins& bins, const float* weights, int16_t* places, double* masses
    ) noexcept
    void count_bins(const float* logits, int64_t vocab, const Bins& bins, int16_t* places, double* counts) noexcept
    bint collect_bin(
        const float* logits, int64_t vocab, const int16_t* places, int16_t wanted, size_t most, vector[uint64_t]& keys
    ) noexcept
