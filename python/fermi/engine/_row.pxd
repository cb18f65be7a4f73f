# cython: language_level=3, cdivision=True
"""Selection and draws within one row of logits, inlined into the sampler.

A row is first reduced to the maxima of short chunks. Top-k takes its threshold from them (the k-th largest maximum cannot
be above the k-th largest logit), top-p gathers only chunks that reach the nucleus; what is gathered is cut by
selection, never by a sort of the vocabulary. Order is total: larger logit first, then lower token id.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from fermi.engine._numbers cimport bounded, exp_negative, key_token, order_key

cdef extern from "<algorithm>" namespace "std" nogil:
    void nth_element[Iterator](Iterator first, Iterator nth, Iterator last)

cdef enum:
    LANES = 16
    CHUNK = 128  # logits per maximum; a multiple of LANES
    BIN_SHIFT = 20  # of the bits of a float32: its exponent and three bits of its mantissa tell its bin
    BINS = (0x3F800000 >> BIN_SHIFT) + 1  # weights are at most 1


cdef struct Row:
    Py_ssize_t vocab
    Py_ssize_t chunks
    vector[float] weights      # e^((logit - largest) / temperature), by token
    vector[float] maxima       # by chunk
    vector[float] selection
    vector[double] masses      # of weights, by chunk
    vector[double] bins        # masses of weights, by magnitude
    vector[int32_t] tokens     # gathered, by id
    vector[uint64_t] keys      # gathered, in no order


cdef inline void shape_row(Row* row, Py_ssize_t vocab):
    row.vocab = vocab
    row.chunks = (vocab + CHUNK - 1) // CHUNK
    row.weights.resize(row.chunks * CHUNK)
    row.maxima.resize(row.chunks)
    row.masses.resize(row.chunks)


cdef inline float find_maxima(Row* row, const float* logits) noexcept nogil:
    """Fills `maxima` and returns the largest logit, bounded; -inf where there is none."""
    cdef float[LANES] lanes
    cdef float largest = -INFINITY
    cdef float best
    cdef Py_ssize_t chunk, start, i, j
    for chunk in range(row.chunks):
        start = chunk * CHUNK
        best = -INFINITY
        if start + CHUNK <= row.vocab:
            for j in range(LANES):
                lanes[j] = -INFINITY
            for i in range(CHUNK // LANES):
                for j in range(LANES):
                    lanes[j] = logits[start + i * LANES + j] if logits[start + i * LANES + j] > lanes[j] else lanes[j]
            for j in range(LANES):
                best = lanes[j] if lanes[j] > best else best
        else:
            for i in range(start, row.vocab):
                best = logits[i] if logits[i] > best else best
        best = bounded(best)
        row.maxima[chunk] = best
        largest = best if best > largest else largest
    return largest


cdef inline Py_ssize_t first(Row* row, const float* logits, float largest) noexcept nogil:
    """The lowest token with the largest logit."""
    cdef Py_ssize_t chunk, i
    for chunk in range(row.chunks):
        if row.maxima[chunk] == largest:
            for i in range(chunk * CHUNK, row.vocab):
                if bounded(logits[i]) == largest:
                    return i
    return -1


cdef inline double weigh(Row* row, const float* logits, float largest, float temperature) noexcept nogil:
    """Fills `weights` and `masses`; returns the mass of the vocabulary."""
    cdef float scale = <float>1.0 / temperature
    cdef float* weights = row.weights.data()
    cdef float* out
    cdef float[LANES] lanes
    cdef double total = 0, mass
    cdef Py_ssize_t chunk, start, length, i, j
    for chunk in range(row.chunks):
        start = chunk * CHUNK
        length = min(CHUNK, row.vocab - start)
        out = weights + start
        if length == CHUNK:  # a constant length for the vectorizer
            for i in range(CHUNK):
                out[i] = exp_negative((logits[start + i] - largest) * scale)
        else:
            for i in range(length):
                out[i] = exp_negative((logits[start + i] - largest) * scale)
            for i in range(length, CHUNK):
                out[i] = 0
        for j in range(LANES):
            lanes[j] = 0
        for i in range(CHUNK // LANES):
            for j in range(LANES):
                lanes[j] += out[i * LANES + j]
        mass = 0
        for j in range(LANES):
            mass += lanes[j]
        row.masses[chunk] = mass
        total += mass
    return total


cdef inline void gather(Row* row, const float* logits, float threshold) noexcept nogil:
    """`tokens` and `keys` of the logits at or above a threshold; minus infinity is never gathered."""
    cdef Py_ssize_t chunk, i
    cdef float logit
    row.tokens.clear()
    row.keys.clear()
    for chunk in range(row.chunks):
        if row.maxima[chunk] >= threshold and row.maxima[chunk] > -INFINITY:
            for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, row.vocab)):
                logit = bounded(logits[i])
                if logit >= threshold and logit > -INFINITY:
                    row.tokens.push_back(<int32_t>i)
                    row.keys.push_back(order_key(logit, i))


cdef inline float kth_maximum(Row* row, Py_ssize_t k) noexcept nogil:
    """A lower bound of the k-th largest logit."""
    if k > row.chunks:
        return -INFINITY
    row.selection = row.maxima
    nth_element(row.selection.begin(), row.selection.begin() + (row.chunks - k), row.selection.end())
    return row.selection[row.chunks - k]


cdef inline void keep_largest(Row* row, Py_ssize_t k) noexcept nogil:
    """Cuts `keys` to the k largest."""
    cdef Py_ssize_t count = row.keys.size()
    if k < count:
        nth_element(row.keys.begin(), row.keys.begin() + (count - k), row.keys.end())
        row.keys.erase(row.keys.begin(), row.keys.begin() + (count - k))


cdef inline uint64_t smallest(Row* row) noexcept nogil:
    cdef uint64_t least = <uint64_t>-1
    cdef size_t i
    for i in range(row.keys.size()):
        least = row.keys[i] if row.keys[i] < least else least
    return least


cdef inline double mass(Row* row, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t i
    for i in range(start, stop):
        total += row.weights[key_token(row.keys[i])]
    return total


cdef inline double weigh_gathered(Row* row, const float* logits, float largest, float temperature) noexcept nogil:
    """Weights of the gathered tokens, and the mass of those in `keys`."""
    cdef float scale = <float>1.0 / temperature
    cdef size_t i
    for i in range(row.tokens.size()):
        row.weights[row.tokens[i]] = exp_negative((logits[row.tokens[i]] - largest) * scale)
    return mass(row, 0, row.keys.size())


cdef inline uint64_t nucleus(Row* row, double target) noexcept nogil:
    """The smallest key of the fewest largest that weigh `target` together: a quickselect by mass."""
    cdef Py_ssize_t low = 0, high = row.keys.size(), middle
    cdef double above = 0, upper
    while high - low > 1:
        middle = (low + high) // 2
        nth_element(row.keys.begin() + low, row.keys.begin() + middle, row.keys.begin() + high)
        upper = mass(row, middle, high)
        if above + upper >= target:
            low = middle
        else:
            above += upper
            high = middle
    return row.keys[low]


cdef inline uint64_t gather_nucleus(
    Row* row, const float* logits, float largest, float temperature, double top_p
) noexcept nogil:
    """`tokens` that hold a wide nucleus of the weights, and the key at which it is cut.

    Weights fall into bins by their exponent and leading bits; only the bin in which the nucleus ends is searched."""
    cdef float scale = <float>1.0 / temperature
    cdef uint32_t bin, bits
    cdef double target, above = 0, total = 0
    cdef float weight
    cdef Py_ssize_t chunk, i
    row.bins.assign(BINS, 0.0)
    for i in range(row.vocab):
        memcpy(&bits, &row.weights[i], 4)
        row.bins[bits >> BIN_SHIFT] += row.weights[i]
    for i in range(BINS):
        total += row.bins[i]
    target = top_p * total
    bin = BINS - 1
    while bin > 0 and above + row.bins[bin] < target:
        above += row.bins[bin]
        bin -= 1
    row.tokens.clear()
    row.keys.clear()
    for chunk in range(row.chunks):
        weight = exp_negative((row.maxima[chunk] - largest) * scale)
        memcpy(&bits, &weight, 4)
        if bits >> BIN_SHIFT < bin:
            continue
        for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, row.vocab)):
            memcpy(&bits, &row.weights[i], 4)
            if bits >> BIN_SHIFT >= bin and bits != 0:
                row.tokens.push_back(<int32_t>i)
                if bits >> BIN_SHIFT == bin:
                    row.keys.push_back(order_key(bounded(logits[i]), i))
    return nucleus(row, target - above) if row.keys.size() > 0 else 0


cdef inline int32_t draw_within(Row* row, Py_ssize_t chunk, double target) noexcept nogil:
    cdef double running = 0
    cdef Py_ssize_t i, last = -1
    for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, row.vocab)):
        if row.weights[i] > 0:
            last = i
            running += row.weights[i]
            if running > target:
                break
    return <int32_t>last


cdef inline int32_t draw_any(Row* row, double target) noexcept nogil:
    """The token at which the running sum of all weights passes the target."""
    cdef double sum_before = 0
    cdef Py_ssize_t chunk, last = -1
    for chunk in range(row.chunks):
        if row.masses[chunk] > 0:
            last = chunk
            if sum_before + row.masses[chunk] > target:
                break
            sum_before += row.masses[chunk]
    return draw_within(row, last, target - sum_before)


cdef inline int32_t draw_gathered(Row* row, const float* logits, uint64_t cut, double u) noexcept nogil:
    """Among the gathered tokens not below the cut, in order of id: the same whatever order selection left."""
    cdef double total = 0, running = 0
    cdef size_t i
    cdef int32_t token, last = -1
    for i in range(row.tokens.size()):
        token = row.tokens[i]
        if order_key(bounded(logits[token]), token) >= cut:
            total += row.weights[token]
    for i in range(row.tokens.size()):
        token = row.tokens[i]
        if order_key(bounded(logits[token]), token) >= cut and row.weights[token] > 0:
            last = token
            running += row.weights[token]
            if running > u * total:
                break
    return last
