# cython: language_level=3, cdivision=True
"""Random numbers, inlined into the sampler."""

from libc.stdint cimport uint32_t, uint64_t


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


cdef inline double uniform(uint64_t seed, uint64_t stream, uint64_t index, uint32_t trial) noexcept nogil:
    """In [0, 1), of 53 random bits. Streams are below 2^32."""
    cdef uint32_t[4] words
    words[0] = <uint32_t>index
    words[1] = <uint32_t>(index >> 32)
    words[2] = <uint32_t>stream
    words[3] = <uint32_t>(stream >> 32) + trial
    philox_4x32(words, seed)
    return <double>(((<uint64_t>words[1] << 32) | words[0]) >> 11) * (1.0 / 9007199254740992.0)
