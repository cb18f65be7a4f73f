# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# distutils: language = c++
"""Choice of tokens from logits, compiled: no Python per token of the vocabulary, no GIL.

A row is first reduced to the maxima of short chunks. Top-k takes its threshold from them (the k-th largest maximum cannot
be above the k-th largest logit), top-p gathers only chunks that reach the nucleus; what is gathered is cut by
selection, never by a sort of the vocabulary. Order is total: larger logit first, then lower token id.
"""

from libc.math cimport INFINITY, log
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from fermi.engine._numbers cimport bounded, exp_negative, key_token, order_key, philox_4x32, uniform

import numpy as np

cdef extern from "<algorithm>" namespace "std" nogil:
    void nth_element[Iterator](Iterator first, Iterator nth, Iterator last)
    void sort[Iterator](Iterator first, Iterator last)

cdef enum:
    LANES = 16
    NEAR = 6  # logits over temperature: where most nuclei end
    CHUNK = 128  # logits per maximum; a multiple of LANES
    BIN_SHIFT = 20  # of the bits of a float32: its exponent and three bits of its mantissa tell its bin
    BINS = (0x3F800000 >> BIN_SHIFT) + 1  # weights are at most 1


def philox(uint64_t seed, uint64_t stream, uint64_t index):
    cdef uint32_t[4] words
    words[0] = <uint32_t>index
    words[1] = <uint32_t>(index >> 32)
    words[2] = <uint32_t>stream
    words[3] = <uint32_t>(stream >> 32)
    philox_4x32(words, seed)
    return words[0], words[1], words[2], words[3]


cdef cppclass Rules:
    float temperature
    int64_t top_k
    double top_p
    double min_p
    float repetition
    float presence
    float frequency
    uint64_t seed
    uint64_t stream
    int64_t drawn
    int64_t min_tokens
    const uint32_t* allowed             # null: every token
    vector[int32_t] bias_tokens
    vector[float] biases
    vector[int32_t] stops
    vector[int32_t] seen                # distinct tokens of prompt and output, in order of appearance
    vector[int32_t] counts              # how often each is in the output
    unordered_map[int32_t, int32_t] places  # token -> place in `seen`

    bint adjusts() noexcept nogil:
        return (
            this.allowed != NULL or this.seen.size() > 0 or this.bias_tokens.size() > 0
            or (this.drawn < this.min_tokens and this.stops.size() > 0)
        )

    bint penalizes() noexcept nogil:
        return this.repetition != 1.0 or this.presence != 0.0 or this.frequency != 0.0

    void see(int32_t token, int32_t times) noexcept nogil:
        cdef int32_t place
        if this.places.count(token):
            place = this.places[token]
        else:
            place = <int32_t>this.seen.size()
            this.places[token] = place
            this.seen.push_back(token)
            this.counts.push_back(0)
        this.counts[place] += times

    void adjust(float* row, Py_ssize_t vocab) noexcept nogil:
        """Masks, penalties and bias, in place; `row` holds bounded logits."""
        cdef Py_ssize_t i, word
        cdef float logit
        cdef uint32_t bits
        if this.allowed != NULL:
            for word in range((vocab + 31) // 32):
                bits = this.allowed[word]
                if bits != 0xFFFFFFFFu:
                    for i in range(32 * word, min(32 * word + 32, vocab)):
                        if not (bits >> (i & 31)) & 1:
                            row[i] = -INFINITY
        if this.drawn < this.min_tokens:
            for i in range(<Py_ssize_t>this.stops.size()):
                row[this.stops[i]] = -INFINITY
        for i in range(<Py_ssize_t>this.seen.size()):
            logit = row[this.seen[i]]
            logit = logit / this.repetition if logit > 0 else logit * this.repetition
            if this.counts[i] > 0:
                logit -= this.presence + this.frequency * <float>this.counts[i]
            row[this.seen[i]] = bounded(logit)
        for i in range(<Py_ssize_t>this.bias_tokens.size()):
            row[this.bias_tokens[i]] = bounded(row[this.bias_tokens[i]] + this.biases[i])


cdef class Draws:
    cdef Rules rules
    cdef Py_ssize_t vocab
    cdef object mask

    def __init__(
        self, *, Py_ssize_t vocab_size, double temperature=1.0, int64_t top_k=0, double top_p=1.0, double min_p=0.0,
        double repetition_penalty=1.0, double presence_penalty=0.0, double frequency_penalty=0.0, logit_bias=None,
        uint64_t seed=0, uint64_t stream=0, int64_t min_tokens=0, stop_token_ids=(), prompt_token_ids=(),
    ):
        self.vocab = vocab_size
        self.rules.temperature = <float>temperature
        self.rules.top_k = top_k
        self.rules.top_p = top_p
        self.rules.min_p = min_p
        self.rules.repetition = <float>repetition_penalty
        self.rules.presence = <float>presence_penalty
        self.rules.frequency = <float>frequency_penalty
        self.rules.seed = seed
        self.rules.stream = stream
        self.rules.drawn = 0
        self.rules.min_tokens = min_tokens
        self.rules.allowed = NULL
        for token, bias in (logit_bias or {}).items():
            self.rules.bias_tokens.push_back(self.checked(token))
            self.rules.biases.push_back(bias)
        for token in stop_token_ids:
            self.rules.stops.push_back(self.checked(token))
        if repetition_penalty != 1.0:
            for token in prompt_token_ids:
                self.rules.see(self.checked(token), 0)

    cdef int32_t checked(self, token) except? -1:
        if not 0 <= token < self.vocab:
            raise ValueError(f"token id {token} is not in a vocabulary of {self.vocab}")
        return token

    @property
    def drawn(self):
        return self.rules.drawn

    def accept(self, token_id):
        cdef int32_t token = self.checked(token_id)
        if self.rules.penalizes():
            self.rules.see(token, 1)
        self.rules.drawn += 1

    def allow(self, mask):
        cdef const uint32_t[::1] words
        if mask is None:
            self.rules.allowed = NULL
        else:
            words = mask
            if words.shape[0] != (self.vocab + 31) // 32:
                raise ValueError(f"a mask of {words.shape[0]} words does not fit a vocabulary of {self.vocab}")
            self.rules.allowed = &words[0]
        self.mask = mask  # keeps the memory alive


cdef class Sampler:
    cdef Py_ssize_t vocab
    cdef Py_ssize_t chunks
    cdef vector[float] row          # adjusted logits of the row at hand
    cdef vector[float] weights      # e^((logit - largest) / temperature), by token
    cdef vector[float] maxima       # by chunk
    cdef vector[float] selection
    cdef vector[double] masses      # of weights, by chunk
    cdef vector[double] bins        # masses of weights, by magnitude
    cdef vector[int32_t] tokens     # gathered, by id
    cdef vector[uint64_t] keys      # gathered, in no order

    def __init__(self, Py_ssize_t vocab_size):
        if not 0 < vocab_size < 2**31:
            raise ValueError(f"a vocabulary cannot have {vocab_size} tokens")
        self.vocab = vocab_size
        self.chunks = (vocab_size + CHUNK - 1) // CHUNK
        self.row.resize(self.chunks * CHUNK)
        self.weights.resize(self.chunks * CHUNK)
        self.maxima.resize(self.chunks)
        self.masses.resize(self.chunks)

    @property
    def vocab_size(self):
        return self.vocab

    def sample(self, const float[:, ::1] logits, list rows, list draws):
        cdef Py_ssize_t count = len(draws)
        cdef vector[Rules*] rules
        cdef vector[Py_ssize_t] places = self.checked(logits, rows, count)
        cdef vector[int32_t] chosen
        cdef Py_ssize_t i
        for i in range(count):
            if (<Draws?>draws[i]).vocab != self.vocab:
                raise ValueError(f"draws over a vocabulary of {(<Draws>draws[i]).vocab}, not {self.vocab}")
            rules.push_back(&(<Draws>draws[i]).rules)
        with nogil:
            for i in range(count):
                chosen.push_back(self.choose(&logits[places[i], 0], rules[i]))
        return chosen

    def log_probabilities(self, const float[:, ::1] logits, list rows, list token_ids, Py_ssize_t top):
        cdef Py_ssize_t count = len(token_ids)
        cdef vector[Py_ssize_t] places = self.checked(logits, rows, count)
        values = np.empty(count, np.float32)
        ranks = np.empty(count, np.int32)
        top_ids = np.empty((count, max(top, 0)), np.int32)
        top_values = np.empty((count, max(top, 0)), np.float32)
        cdef float[::1] value = values
        cdef int32_t[::1] rank = ranks
        cdef int32_t[:, ::1] top_id = top_ids
        cdef float[:, ::1] top_value = top_values
        cdef vector[Py_ssize_t] tokens
        cdef Py_ssize_t i
        for i in range(count):
            if not 0 <= token_ids[i] < self.vocab:
                raise ValueError(f"token id {token_ids[i]} is not in a vocabulary of {self.vocab}")
            tokens.push_back(token_ids[i])
        if count > 0:
            with nogil:
                for i in range(count):
                    self.measure(
                        &logits[places[i], 0], tokens[i], top, &value[i], &rank[i],
                        &top_id[i, 0] if top > 0 else NULL, &top_value[i, 0] if top > 0 else NULL,
                    )
        return values, ranks, top_ids, top_values

    cdef vector[Py_ssize_t] checked(self, const float[:, ::1] logits, list rows, Py_ssize_t count) except *:
        cdef vector[Py_ssize_t] places
        if logits.shape[1] != self.vocab:
            raise ValueError(f"logits of {logits.shape[1]} tokens, not {self.vocab}")
        if len(rows) != count:
            raise ValueError(f"{len(rows)} rows for {count} sequences")
        for row in rows:
            if not 0 <= row < logits.shape[0]:
                raise ValueError(f"row {row} of {logits.shape[0]}")
            places.push_back(row)
        return places

    cdef float find_maxima(self, const float* row) noexcept nogil:
        """Fills `maxima` and returns the largest logit, bounded; -inf where there is none."""
        cdef float[LANES] lanes
        cdef float largest = -INFINITY
        cdef float best
        cdef Py_ssize_t chunk, start, i, j
        for chunk in range(self.chunks):
            start = chunk * CHUNK
            best = -INFINITY
            if start + CHUNK <= self.vocab:
                for j in range(LANES):
                    lanes[j] = -INFINITY
                for i in range(CHUNK // LANES):
                    for j in range(LANES):
                        lanes[j] = row[start + i * LANES + j] if row[start + i * LANES + j] > lanes[j] else lanes[j]
                for j in range(LANES):
                    best = lanes[j] if lanes[j] > best else best
            else:
                for i in range(start, self.vocab):
                    best = row[i] if row[i] > best else best
            best = bounded(best)
            self.maxima[chunk] = best
            largest = best if best > largest else largest
        return largest

    cdef Py_ssize_t first(self, const float* row, float largest) noexcept nogil:
        """The lowest token with the largest logit."""
        cdef Py_ssize_t chunk, i
        for chunk in range(self.chunks):
            if self.maxima[chunk] == largest:
                for i in range(chunk * CHUNK, self.vocab):
                    if bounded(row[i]) == largest:
                        return i
        return -1

    cdef double weigh(self, const float* row, float largest, float temperature) noexcept nogil:
        """Fills `weights` and `masses`; returns the mass of the vocabulary."""
        cdef float scale = <float>1.0 / temperature
        cdef float* weights = self.weights.data()
        cdef float* out
        cdef float[LANES] lanes
        cdef double total = 0, mass
        cdef Py_ssize_t chunk, start, length, i, j
        for chunk in range(self.chunks):
            start = chunk * CHUNK
            length = min(CHUNK, self.vocab - start)
            out = weights + start
            if length == CHUNK:  # a constant length for the vectorizer
                for i in range(CHUNK):
                    out[i] = exp_negative((row[start + i] - largest) * scale)
            else:
                for i in range(length):
                    out[i] = exp_negative((row[start + i] - largest) * scale)
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
            self.masses[chunk] = mass
            total += mass
        return total

    cdef void gather(self, const float* row, float threshold) noexcept nogil:
        """`tokens` and `keys` of the logits at or above a threshold; minus infinity is never gathered."""
        cdef Py_ssize_t chunk, i
        cdef float logit
        self.tokens.clear()
        self.keys.clear()
        for chunk in range(self.chunks):
            if self.maxima[chunk] >= threshold and self.maxima[chunk] > -INFINITY:
                for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, self.vocab)):
                    logit = bounded(row[i])
                    if logit >= threshold and logit > -INFINITY:
                        self.tokens.push_back(<int32_t>i)
                        self.keys.push_back(order_key(logit, i))

    cdef float kth_maximum(self, Py_ssize_t k) noexcept nogil:
        """A lower bound of the k-th largest logit."""
        if k > self.chunks:
            return -INFINITY
        self.selection = self.maxima
        nth_element(self.selection.begin(), self.selection.begin() + (self.chunks - k), self.selection.end())
        return self.selection[self.chunks - k]

    cdef void keep_largest(self, Py_ssize_t k) noexcept nogil:
        """Cuts `keys` to the k largest."""
        cdef Py_ssize_t count = self.keys.size()
        if k < count:
            nth_element(self.keys.begin(), self.keys.begin() + (count - k), self.keys.end())
            self.keys.erase(self.keys.begin(), self.keys.begin() + (count - k))

    cdef uint64_t smallest(self) noexcept nogil:
        cdef uint64_t least = <uint64_t>-1
        cdef size_t i
        for i in range(self.keys.size()):
            least = self.keys[i] if self.keys[i] < least else least
        return least

    cdef double mass(self, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
        cdef double total = 0
        cdef Py_ssize_t i
        for i in range(start, stop):
            total += self.weights[key_token(self.keys[i])]
        return total

    cdef uint64_t nucleus(self, double target) noexcept nogil:
        """The smallest key of the fewest largest that weigh `target` together: a quickselect by mass."""
        cdef Py_ssize_t low = 0, high = self.keys.size(), middle
        cdef double above = 0, upper
        while high - low > 1:
            middle = (low + high) // 2
            nth_element(self.keys.begin() + low, self.keys.begin() + middle, self.keys.begin() + high)
            upper = self.mass(middle, high)
            if above + upper >= target:
                low = middle
            else:
                above += upper
                high = middle
        return self.keys[low]

    cdef uint64_t gather_nucleus(
        self, const float* row, float largest, float temperature, double top_p
    ) noexcept nogil:
        """`tokens` that hold a wide nucleus of the weights, and the key at which it is cut.

        Weights fall into bins by their exponent and leading bits; only the bin in which the nucleus ends is searched."""
        cdef float scale = <float>1.0 / temperature
        cdef uint32_t bin, bits
        cdef double target, above = 0, total = 0
        cdef float weight
        cdef Py_ssize_t chunk, i
        self.bins.assign(BINS, 0.0)
        for i in range(self.vocab):
            memcpy(&bits, &self.weights[i], 4)
            self.bins[bits >> BIN_SHIFT] += self.weights[i]
        for i in range(BINS):
            total += self.bins[i]
        target = top_p * total
        bin = BINS - 1
        while bin > 0 and above + self.bins[bin] < target:
            above += self.bins[bin]
            bin -= 1
        self.tokens.clear()
        self.keys.clear()
        for chunk in range(self.chunks):
            weight = exp_negative((self.maxima[chunk] - largest) * scale)
            memcpy(&bits, &weight, 4)
            if bits >> BIN_SHIFT < bin:
                continue
            for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, self.vocab)):
                memcpy(&bits, &self.weights[i], 4)
                if bits >> BIN_SHIFT >= bin and bits != 0:
                    self.tokens.push_back(<int32_t>i)
                    if bits >> BIN_SHIFT == bin:
                        self.keys.push_back(order_key(bounded(row[i]), i))
        return self.nucleus(target - above) if self.keys.size() > 0 else 0

    cdef int32_t choose(self, const float* logits, Rules* rules) noexcept nogil:
        cdef const float* row = logits
        cdef float largest, threshold
        cdef double total, u
        cdef uint64_t cut = 0
        cdef bint top_k = 0 < rules.top_k < self.vocab
        cdef Py_ssize_t i
        if rules.adjusts():
            for i in range(self.vocab):
                self.row[i] = bounded(logits[i])
            rules.adjust(self.row.data(), self.vocab)
            row = self.row.data()
        largest = self.find_maxima(row)
        if largest == -INFINITY:
            return -1
        if rules.temperature < 1e-5 or rules.top_k == 1:
            return <int32_t>self.first(row, largest)
        u = uniform(rules.seed, rules.stream, <uint64_t>rules.drawn)
        if not top_k and rules.top_p >= 1.0 and rules.min_p <= 0.0:
            return self.draw_any(u * self.weigh(row, largest, rules.temperature))

        threshold = -INFINITY
        if rules.min_p > 0.0:
            threshold = largest + rules.temperature * <float>log(rules.min_p)
        if top_k:
            threshold = max(threshold, self.kth_maximum(rules.top_k))
        if top_k or rules.min_p > 0.0:
            self.gather(row, threshold)
            if top_k:
                self.keep_largest(rules.top_k)
                cut = self.smallest()
            total = self.weigh_gathered(row, largest, rules.temperature)
            if rules.top_p < 1.0:
                cut = max(cut, self.nucleus(rules.top_p * total))
        else:
            total = self.weigh(row, largest, rules.temperature)
            self.gather(row, largest - NEAR * rules.temperature)
            if self.mass(0, self.keys.size()) >= rules.top_p * total:
                cut = self.nucleus(rules.top_p * total)
            else:
                cut = self.gather_nucleus(row, largest, rules.temperature, rules.top_p)
        return self.draw_gathered(row, cut, u)

    cdef double weigh_gathered(self, const float* row, float largest, float temperature) noexcept nogil:
        """Weights of the gathered tokens, and the mass of those in `keys`."""
        cdef float scale = <float>1.0 / temperature
        cdef size_t i
        for i in range(self.tokens.size()):
            self.weights[self.tokens[i]] = exp_negative((row[self.tokens[i]] - largest) * scale)
        return self.mass(0, self.keys.size())

    cdef int32_t draw_any(self, double target) noexcept nogil:
        """The token at which the running sum of all weights passes the target."""
        cdef double sum_before = 0
        cdef Py_ssize_t chunk, last = -1
        for chunk in range(self.chunks):
            if self.masses[chunk] > 0:
                last = chunk
                if sum_before + self.masses[chunk] > target:
                    break
                sum_before += self.masses[chunk]
        return self.draw_within(last, target - sum_before)

    cdef int32_t draw_within(self, Py_ssize_t chunk, double target) noexcept nogil:
        cdef double running = 0
        cdef Py_ssize_t i, last = -1
        for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, self.vocab)):
            if self.weights[i] > 0:
                last = i
                running += self.weights[i]
                if running > target:
                    break
        return <int32_t>last

    cdef int32_t draw_gathered(self, const float* row, uint64_t cut, double u) noexcept nogil:
        """Among the gathered tokens not below the cut, in order of id: the same whatever order selection left."""
        cdef double total = 0, running = 0
        cdef size_t i
        cdef int32_t token, last = -1
        for i in range(self.tokens.size()):
            token = self.tokens[i]
            if order_key(bounded(row[token]), token) >= cut:
                total += self.weights[token]
        for i in range(self.tokens.size()):
            token = self.tokens[i]
            if order_key(bounded(row[token]), token) >= cut and self.weights[token] > 0:
                last = token
                running += self.weights[token]
                if running > u * total:
                    break
        return last

    cdef void measure(
        self, const float* row, Py_ssize_t token, Py_ssize_t top, float* value, int32_t* rank, int32_t* top_ids,
        float* top_values,
    ) noexcept nogil:
        cdef float largest = self.find_maxima(row)
        cdef double total
        cdef uint64_t key
        cdef Py_ssize_t chunk, i, found
        cdef int32_t above = 0
        if largest == -INFINITY:  # no distribution
            value[0] = -INFINITY
            rank[0] = 1
            for i in range(top):
                top_ids[i] = -1
                top_values[i] = -INFINITY
            return
        total = log(self.weigh(row, largest, 1.0))
        value[0] = <float>(<double>(bounded(row[token])) - largest - total)
        key = order_key(bounded(row[token]), token)
        for chunk in range(self.chunks):
            if self.maxima[chunk] >= bounded(row[token]):
                for i in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, self.vocab)):
                    above += order_key(bounded(row[i]), i) > key
        rank[0] = above + 1
        if top > 0:
            self.gather(row, self.kth_maximum(top))
            self.keep_largest(top)
            sort(self.keys.begin(), self.keys.end())
            found = self.keys.size()
            for i in range(top):
                if i < found:
                    top_ids[i] = <int32_t>key_token(self.keys[found - 1 - i])
                    top_values[i] = <float>(<double>(bounded(row[top_ids[i]])) - largest - total)
                else:
                    top_ids[i] = -1
                    top_values[i] = -INFINITY
