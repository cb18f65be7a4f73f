# cython: language_level=3, cdivision=True
"""Random numbers, a vectorizable exponential and the total order of logits, inlined into the sampler."""

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef inline void philox_4x32(uint32_t* counter, uint64_t key) noexcept nogil:
    cdef uint32_t low_key = <uint32_t>key
    cdef uint32_t high_key = <uint32_t>(key >> 32)
    cdef uint64_t first, second
    cdef int i
    for i in range(10):
        first = <uint64_t>0xD2511F53u * counter[0]
        second = <uint64_t>0xCD9E8D57u * counter[2]
        counter[0] = <uint32_t>(second >> 32) ^ counter[1] ^ low_key
        counter[1] = <uint32_t>second
        counter[2] = <uint32_t>(first >> 32) ^ counter[3] ^ high_key
        counter[3] = <uint32_t>first
        low_key += 0x9E3779B9u
        high_key += 0xBB67AE85u


cdef inline double uniform(uint64_t seed, uint64_t stream, uint64_t index) noexcept nogil:
    """In [0, 1), of 53 random bits."""
    cdef uint32_t[4] words
    words[0] = <uint32_t>index
    words[1] = <uint32_t>(index >> 32)
    words[2] = <uint32_t>stream
    words[3] = <uint32_t>(stream >> 32)
    philox_4x32(words, seed)
    return <double>(((<uint64_t>words[1] << 32) | words[0]) >> 11) * (1.0 / 9007199254740992.0)


cdef inline int32_t bits_of(float x) noexcept nogil:
    cdef int32_t bits
    memcpy(&bits, &x, 4)
    return bits


cdef inline float exp_negative(float x) noexcept nogil:
    """e^x for x <= 0 to 1e-7 relative; 0 below -87 and for NaN, 1 above 0.

    Comparisons are of the bits, as integers: loops over it become vector code without leave to ignore NaN."""
    cdef int32_t bits, magnitude, negative, kept, power
    cdef float clamped, n, r, scale
    cdef float p = <float>1.9875691500e-4
    bits = bits_of(x)
    magnitude = bits & 0x7FFFFFFF
    kept = -<int32_t>(magnitude < 0x42AE0000)  # |x| < 87
    negative = bits >> 31
    bits = bits & negative & kept  # of x where it is in (-87, 0), else of 0
    kept |= ~negative & -<int32_t>(magnitude <= 0x7F800000)
    memcpy(&clamped, &bits, 4)
    power = <int32_t>(clamped * <float>1.44269504 - <float>0.5)  # to nearest, as it is not positive
    n = <float>power
    r = (clamped - n * <float>0.693359375) - n * <float>-2.12194440e-4
    p = p * r + <float>1.3981999507e-3
    p = p * r + <float>8.3334519073e-3
    p = p * r + <float>4.1665795894e-2
    p = p * r + <float>1.6666665459e-1
    p = p * r + <float>5.0000001201e-1
    p = p * r * r + r + <float>1.0
    bits = (power + 127) << 23
    memcpy(&scale, &bits, 4)
    p = p * scale
    bits = bits_of(p) & kept
    memcpy(&p, &bits, 4)
    return p


cdef inline float bounded(float logit) noexcept nogil:
    """The logit with NaN as minus infinity and plus infinity as the largest number."""
    cdef float low = logit if logit > -INFINITY else <float>-INFINITY
    return low if low < FLT_MAX else <float>FLT_MAX


cdef inline uint64_t order_key(float logit, Py_ssize_t token) noexcept nogil:
    """Larger for larger logits, then for lower ids."""
    cdef float zeroed = logit + <float>0.0  # -0.0 equals 0.0
    cdef uint32_t bits
    memcpy(&bits, &zeroed, 4)
    bits = ~bits if bits >> 31 else bits | 0x80000000u
    return (<uint64_t>bits << 32) | (0xFFFFFFFFu - <uint32_t>token)


cdef inline Py_ssize_t key_token(uint64_t key) noexcept nogil:
    return <Py_ssize_t>(0xFFFFFFFFu - <uint32_t>key)
