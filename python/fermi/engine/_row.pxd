# cython: language_level=3, cdivision=True
"""Selection and draws within one row of logits, inlined into the sampler.

A row is first reduced to the maxima of short chunks, which bound the largest logits from below. Where few tokens can be
drawn they are gathered and cut by selection; where many can, a histogram finds the bin in which the cut lies, and only
that bin is searched. Nothing is ever sorted. What is kept is told by a cut: an order key, and every larger one.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int16_t, int32_t, int64_t, uint64_t
from libcpp.vector cimport vector

from fermi.engine._loops cimport (
    BINS, CHUNK, Bins, bounded, chunks_of, collect_bin, count_bins, exp_negative, key_token, order_key, weigh_bins,
)

cdef extern from "<algorithm>" namespace "std" nogil:
    void nth_element[Iterator](Iterator first, Iterator nth, Iterator last)

cdef enum:
    FEW = 1024  # tokens that are cheaper to select among than to look at all
    SOME = 4096  # … where the selection is by number, or of what lies in one bin
    LEVELS = 3  # of histograms, each of one bin of the one before


cdef struct Row:
    int64_t vocab
    int64_t chunks
    vector[float] weights      # e^((logit - largest) / temperature), by token
    vector[float] maxima       # of logits, by chunk
    vector[double] masses      # of weights, by chunk
    vector[float] selection
    vector[double] bins        # masses of weights, or numbers of tokens, by bin
    vector[int16_t] places     # bins, by token
    vector[int32_t] tokens     # gathered, by id
    vector[uint64_t] keys      # gathered, in no order


cdef inline void shape_row(Row* row, int64_t vocab):
    row.vocab = vocab
    row.chunks = chunks_of(vocab)
    row.weights.resize(row.chunks * CHUNK)
    row.maxima.resize(row.chunks)
    row.masses.resize(row.chunks)
    row.places.resize(row.chunks * CHUNK)
    row.bins.resize(BINS)


cdef inline int64_t first(Row* row, const float* logits, float largest) noexcept nogil:
    """The lowest token with the largest logit."""
    cdef int64_t chunk, i
    for chunk in range(row.chunks):
        if row.maxima[chunk] == largest:
            for i in range(chunk * CHUNK, row.vocab):
                if bounded(logits[i]) == largest:
                    return i
    return -1


cdef inline bint gather(Row* row, const float* logits, float threshold, size_t most) noexcept nogil:
    """`tokens` and `keys` of the logits at or above a threshold, never of minus infinity; False where they are more."""
    cdef int64_t chunk, i
    cdef float logit
    row.tokens.clear()
    row.keys.clear()
    for chunk in range(row.chunks):
        if row.maxima[chunk] >= threshold and row.maxima[chunk] > -INFINITY:
            if row.keys.size() > most:
                return False
            for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, row.vocab)):
                logit = bounded(logits[i])
                if logit >= threshold and logit > -INFINITY:
                    row.tokens.push_back(<int32_t>i)
                    row.keys.push_back(order_key(logit, i))
    return row.keys.size() <= most


cdef inline float kth_maximum(Row* row, int64_t k) noexcept nogil:
    """A lower bound of the k-th largest logit."""
    if k > row.chunks:
        return -INFINITY
    row.selection = row.maxima
    nth_element(row.selection.begin(), row.selection.begin() + (row.chunks - k), row.selection.end())
    return row.selection[row.chunks - k]


cdef inline uint64_t kth_key(Row* row, int64_t k) noexcept nogil:
    """The k-th largest of `keys`, or the smallest where they are fewer; cuts `keys` there."""
    cdef int64_t count = row.keys.size()
    if k < count:
        nth_element(row.keys.begin(), row.keys.begin() + (count - k), row.keys.end())
        row.keys.erase(row.keys.begin(), row.keys.begin() + (count - k))
        return row.keys[0]
    return smallest(row)


cdef inline uint64_t smallest(Row* row) noexcept nogil:
    cdef uint64_t least = <uint64_t>-1
    cdef size_t i
    for i in range(row.keys.size()):
        least = row.keys[i] if row.keys[i] < least else least
    return least


cdef inline double mass(Row* row, int64_t start, int64_t stop) noexcept nogil:
    cdef double total = 0
    cdef int64_t i
    for i in range(start, stop):
        total += row.weights[key_token(row.keys[i])]
    return total


cdef inline double weigh_gathered(Row* row, const float* logits, float largest, float scale) noexcept nogil:
    """Weights of the gathered tokens, and the mass of those in `keys`."""
    cdef size_t i
    for i in range(row.tokens.size()):
        row.weights[row.tokens[i]] = exp_negative((logits[row.tokens[i]] - largest) * scale)
    return mass(row, 0, row.keys.size())


cdef inline uint64_t nucleus(Row* row, double target) noexcept nogil:
    """The smallest of the fewest largest keys that weigh `target` together: a quickselect by mass."""
    cdef int64_t low = 0, high = row.keys.size(), middle
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


cdef inline int16_t find_bin(Row* row, double target, double* above) noexcept nogil:
    """The bin in which the sum of `bins` reaches the target, else the last. `above`: the sum of those before it."""
    cdef int16_t bin = 0
    above[0] = 0
    while bin < BINS - 1 and above[0] + row.bins[bin] < target:
        above[0] += row.bins[bin]
        bin += 1
    return bin


cdef inline uint64_t find_cut(
    Row* row, const float* logits, float largest, float scale, double target, bint by_mass
) noexcept nogil:
    """The smallest of the fewest largest keys that weigh, or are, `target` together; 0 where all of any weight are.

    Wants `weights`."""
    cdef Bins bins
    cdef double above
    cdef int16_t bin
    cdef int level
    bins.largest = largest
    bins.scale = scale
    for level in range(LEVELS):
        row.bins.assign(BINS, 0.0)
        if by_mass:
            weigh_bins(logits, row.vocab, bins, row.weights.data(), row.places.data(), row.bins.data())
        else:
            count_bins(logits, row.vocab, bins, row.places.data(), row.bins.data())
        bin = find_bin(row, target, &above)
        if level == 0 and bin == BINS - 1:
            return 0
        if collect_bin(logits, row.vocab, row.places.data(), bin, SOME if level + 1 < LEVELS else row.vocab, row.keys):
            break
        bins.offset += <float>(bin - 1) / bins.density
        bins.density *= <float>(BINS - 2)
    return nucleus(row, target - above) if by_mass else kth_key(row, <int64_t>(target - above))


cdef inline int32_t draw(Row* row, const float* logits, uint64_t cut, double target) noexcept nogil:
    """The token at which the running sum of the weights from the cut on passes the target. `masses` are theirs."""
    cdef double running = 0
    cdef int64_t chunk, i, last = -1
    for chunk in range(row.chunks):
        if row.masses[chunk] > 0:
            last = chunk
            if running + row.masses[chunk] > target:
                break
            running += row.masses[chunk]
    chunk = last
    last = -1
    for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, row.vocab)):
        if row.weights[i] > 0 and order_key(bounded(logits[i]), i) >= cut:
            last = i
            running += row.weights[i]
            if running > target:
                break
    return <int32_t>last


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
