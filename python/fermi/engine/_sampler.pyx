# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# distutils: language = c++
"""Choice of tokens from logits, compiled: no Python per token of the vocabulary, no GIL."""

from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, log
from libc.stdint cimport int16_t, int32_t, int64_t, uint32_t, uint64_t
from libcpp.vector cimport vector

from fermi.engine._loops cimport (
    BINS, Bins, bounded, copy_bounded, count_before, find_maxima, key_logit, key_token, order_key, run_lanes,
    weigh, weigh_bins, weigh_kept,
)
from fermi.engine._numbers cimport philox_4x32, uniform
from fermi.engine._row cimport (
    FEW, SOME, Row, draw, draw_gathered, find_bin, find_cut, first, gather, kth_key, kth_maximum, mass, nucleus, shape_row,
    weigh_gathered,
)
from fermi.engine._rules cimport Rules, adjust, adjusts, penalizes, see

import numpy as np

cdef extern from "<algorithm>" namespace "std" nogil:
    void sort[Iterator](Iterator first, Iterator last)

cdef double NARROW = 0.05  # of top_p: too few draws are in the nucleus

cdef enum:
    NEAR = 6  # logits over temperature: where most nuclei end
    NO_TOKEN = 0xFFFFFFFF  # comes after every token of its logit
    TRIALS = 64  # draws, until one is in the nucleus
    LOGITS_PER_THREAD = 500000  # fewer are looked at before another thread has started


def philox(uint64_t seed, uint64_t stream, uint64_t index):
    cdef uint32_t[4] words
    words[0] = <uint32_t>index
    words[1] = <uint32_t>(index >> 32)
    words[2] = <uint32_t>stream
    words[3] = <uint32_t>(stream >> 32)
    philox_4x32(words, seed)
    return words[0], words[1], words[2], words[3]


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
                see(&self.rules, self.checked(token), 0)

    cdef int32_t checked(self, token) except? -1:
        if not 0 <= token < self.vocab:
            raise ValueError(f"token id {token} is not in a vocabulary of {self.vocab}")
        return token

    @property
    def drawn(self):
        return self.rules.drawn

    def accept(self, token_id):
        cdef int32_t token = self.checked(token_id)
        if penalizes(&self.rules):
            see(&self.rules, token, 1)
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


cdef struct Scratch:
    Row row
    vector[float] adjusted  # logits of the row at hand, masked, penalized and biased


cdef const float* bound(Scratch* scratch, const float* logits) noexcept nogil:
    """A copy of them, each bounded."""
    if logits != scratch.adjusted.data():
        copy_bounded(logits, scratch.row.vocab, scratch.adjusted.data())
    return scratch.adjusted.data()


cdef int32_t draw_nucleus(
    Row* row, const float* logits, Rules* rules, float largest, float scale, uint64_t cut, double total
) noexcept nogil:
    """A token of the fewest largest that weigh top_p of `total`, the mass from the cut on. `masses` are theirs.

    Tokens are drawn from all until one is in the nucleus: nearly every one is where it is wide, and its bin tells. Only
    for a token of the bin in which the nucleus ends is its end looked for.
    """
    cdef Bins bins
    cdef double above, target = rules.top_p * total
    cdef uint32_t trial
    cdef int16_t bin
    cdef int32_t token = -1
    if rules.top_p > NARROW:
        bins.largest = largest
        bins.scale = scale
        row.bins.assign(BINS, 0.0)
        weigh_bins(logits, row.vocab, bins, row.weights.data(), row.places.data(), row.bins.data())
        bin = find_bin(row, target, &above)
        if bin == BINS - 1:  # all of any weight
            return draw(row, logits, cut, total * random_number(rules, 0))
        for trial in range(TRIALS):
            token = draw(row, logits, cut, total * random_number(rules, trial))
            if row.places[token] < bin:
                return token
            if row.places[token] == bin:
                break
            token = -1
    cut = max(cut, find_cut(row, logits, largest, scale, target, True))
    if token >= 0 and order_key(bounded(logits[token]), token) >= cut:
        return token
    total = weigh_kept(logits, row.vocab, cut, row.weights.data(), row.masses.data())
    return draw(row, logits, cut, total * random_number(rules, TRIALS))


cdef double random_number(Rules* rules, uint32_t trial) noexcept nogil:
    return uniform(rules.seed, rules.stream, <uint64_t>rules.drawn, trial)


cdef int32_t draw_row(Scratch* scratch, const float* logits, Rules* rules, float largest) noexcept nogil:
    """A token at random. What few tokens can be is decided among them, without a look at the others."""
    cdef Row* row = &scratch.row
    cdef float scale = <float>1.0 / rules.temperature
    cdef bint top_k = 0 < rules.top_k < scratch.row.vocab
    cdef bint top_p = rules.top_p < 1.0
    cdef float least = -INFINITY, threshold
    cdef double total
    cdef uint64_t cut = 0
    cdef double u = random_number(rules, 0)
    if largest == FLT_MAX:
        logits = bound(scratch, logits)
    if rules.min_p > 0.0:
        least = largest + rules.temperature * <float>log(rules.min_p)
    if top_k or rules.min_p > 0.0:
        threshold = max(least, kth_maximum(row, rules.top_k)) if top_k else least
        if gather(row, logits, threshold, SOME if top_k else FEW):
            if top_k:
                cut = kth_key(row, rules.top_k)
            total = weigh_gathered(row, logits, largest, scale)
            if top_p:
                cut = max(cut, nucleus(row, rules.top_p * total))
            return draw_gathered(row, logits, cut, u)
        if rules.min_p > 0.0:
            cut = order_key(least, NO_TOKEN)
        total = weigh(logits, scratch.row.vocab, largest, scale, row.weights.data(), row.masses.data())
        if top_k:
            cut = max(cut, find_cut(row, logits, largest, scale, rules.top_k, False))
        total = weigh_kept(logits, scratch.row.vocab, cut, row.weights.data(), row.masses.data())
    else:
        total = weigh(logits, scratch.row.vocab, largest, scale, row.weights.data(), row.masses.data())
        if top_p and gather(row, logits, largest - <float>NEAR * rules.temperature, FEW):
            if mass(row, 0, row.keys.size()) >= rules.top_p * total:
                return draw_gathered(row, logits, nucleus(row, rules.top_p * total), u)
    if top_p:
        return draw_nucleus(row, logits, rules, largest, scale, cut, total)
    return draw(row, logits, cut, u * total)


cdef int32_t choose(Scratch* scratch, const float* logits, Rules* rules) noexcept nogil:
    """The row's token, or -1."""
    cdef Row* row = &scratch.row
    cdef float largest
    if adjusts(rules):
        logits = bound(scratch, logits)
        adjust(rules, scratch.adjusted.data(), scratch.row.vocab)
    largest = find_maxima(logits, scratch.row.vocab, row.maxima.data())
    if largest == -INFINITY:
        return -1
    if rules.temperature < <float>1e-5 or rules.top_k == 1:
        return <int32_t>first(row, logits, largest)
    return draw_row(scratch, logits, rules, largest)


cdef void measure(
    Scratch* scratch, const float* logits, Py_ssize_t token, Py_ssize_t top, float* value, int32_t* rank, int32_t* top_ids,
    float* top_values,
) noexcept nogil:
    """The log-probability and rank of a token, and the likeliest tokens with theirs."""
    cdef Row* row = &scratch.row
    cdef float largest = find_maxima(logits, scratch.row.vocab, row.maxima.data())
    cdef float own = bounded(logits[token])
    cdef float threshold
    cdef double total = 0  # no distribution
    cdef Py_ssize_t i, found = 0
    value[0] = -INFINITY
    if largest == FLT_MAX:
        logits = bound(scratch, logits)
    if largest > -INFINITY:
        total = weigh(logits, scratch.row.vocab, largest, 1.0, row.weights.data(), row.masses.data())
        if top > 0:
            if not gather(row, logits, kth_maximum(row, top), FEW):
                threshold = key_logit(find_cut(row, logits, largest, 1.0, top, False))
                gather(row, logits, threshold, scratch.row.vocab)
            kth_key(row, top)
            sort(row.keys.begin(), row.keys.end())
            found = row.keys.size()
        total = largest + log(total)
        value[0] = <float>(own - total)
    rank[0] = <int32_t>count_before(logits, scratch.row.vocab, own, token) + 1
    for i in range(top):
        if i < found:
            top_ids[i] = <int32_t>key_token(row.keys[found - 1 - i])
            top_values[i] = <float>(bounded(logits[top_ids[i]]) - total)
        else:
            top_ids[i] = -1
            top_values[i] = -INFINITY


cdef struct Choices:
    # A token for each of several sequences.
    Py_ssize_t count
    int lanes
    Scratch* scratch           # [lanes]
    const float** logits       # [count]
    Rules** rules              # [count]
    int32_t* chosen            # [count]


cdef void choose_some(void* context, int lane) noexcept nogil:
    cdef Choices* choices = <Choices*>context
    cdef Py_ssize_t i = lane
    while i < choices.count:
        choices.chosen[i] = choose(&choices.scratch[lane], choices.logits[i], choices.rules[i])
        i += choices.lanes


cdef struct Measures:
    # A log-probability for each of several tokens.
    Py_ssize_t count
    int lanes
    Py_ssize_t top
    Scratch* scratch           # [lanes]
    const float** logits       # [count]
    Py_ssize_t* tokens         # [count]
    float* values              # [count]
    int32_t* ranks             # [count]
    int32_t* top_ids           # [count, top]
    float* top_values          # [count, top]


cdef void measure_some(void* context, int lane) noexcept nogil:
    cdef Measures* measures = <Measures*>context
    cdef Py_ssize_t i = lane, top = measures.top
    while i < measures.count:
        measure(
            &measures.scratch[lane], measures.logits[i], measures.tokens[i], top, &measures.values[i],
            &measures.ranks[i], measures.top_ids + i * top, measures.top_values + i * top,
        )
        i += measures.lanes


cdef class Sampler:
    cdef Py_ssize_t vocab
    cdef int threads
    cdef vector[Scratch] scratch  # by lane, as many as were needed so far

    def __init__(self, Py_ssize_t vocab_size, int threads=1):
        if not 0 < vocab_size < 2**31:
            raise ValueError(f"a vocabulary cannot have {vocab_size} tokens")
        if threads < 1:
            raise ValueError(f"{threads} threads")
        self.vocab = vocab_size
        self.threads = threads

    @property
    def vocab_size(self):
        return self.vocab

    def sample(self, const float[:, ::1] logits, list rows, list draws):
        cdef Choices choices
        cdef vector[const float*] places
        cdef vector[Rules*] rules
        cdef vector[int32_t] chosen
        choices.count = len(draws)
        places = self.checked(logits, rows, choices.count)
        for each in draws:
            if (<Draws?>each).vocab != self.vocab:
                raise ValueError(f"draws over a vocabulary of {(<Draws>each).vocab}, not {self.vocab}")
            rules.push_back(&(<Draws>each).rules)
        chosen.resize(choices.count)
        choices.lanes = self.prepare(choices.count)
        choices.scratch = self.scratch.data()
        choices.logits = places.data()
        choices.rules = rules.data()
        choices.chosen = chosen.data()
        with nogil:
            run_lanes(choices.lanes, choose_some, &choices)
        return chosen

    def log_probabilities(self, const float[:, ::1] logits, list rows, list token_ids, Py_ssize_t top):
        cdef Measures measures
        cdef vector[const float*] places
        cdef vector[Py_ssize_t] tokens
        cdef Py_ssize_t count = len(token_ids)
        measures.count = count
        measures.top = max(top, 0)
        values = np.empty(count, np.float32)
        ranks = np.empty(count, np.int32)
        top_ids = np.empty((count, measures.top), np.int32)
        top_values = np.empty((count, measures.top), np.float32)
        cdef float[::1] value = values
        cdef int32_t[::1] rank = ranks
        cdef int32_t[::1] top_id = top_ids.reshape(-1)
        cdef float[::1] top_value = top_values.reshape(-1)
        places = self.checked(logits, rows, count)
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab:
                raise ValueError(f"token id {token_id} is not in a vocabulary of {self.vocab}")
            tokens.push_back(token_id)
        if count > 0:
            measures.lanes = self.prepare(count)
            measures.scratch = self.scratch.data()
            measures.logits = places.data()
            measures.tokens = tokens.data()
            measures.values = &value[0]
            measures.ranks = &rank[0]
            measures.top_ids = &top_id[0] if measures.top > 0 else NULL
            measures.top_values = &top_value[0] if measures.top > 0 else NULL
            with nogil:
                run_lanes(measures.lanes, measure_some, &measures)
        return values, ranks, top_ids, top_values

    cdef int prepare(self, Py_ssize_t count):
        """How many threads share so many rows, with memory for each."""
        cdef int lanes = max(1, min(self.threads, count * self.vocab // LOGITS_PER_THREAD))
        cdef size_t lane
        for lane in range(self.scratch.size(), lanes):
            self.scratch.resize(lane + 1)
            shape_row(&self.scratch[lane].row, self.vocab)
            self.scratch[lane].adjusted.resize(self.vocab)
        return lanes

    cdef vector[const float*] checked(self, const float[:, ::1] logits, list rows, Py_ssize_t count) except *:
        """The logits of each row."""
        cdef vector[const float*] places
        cdef Py_ssize_t row
        if logits.shape[1] != self.vocab:
            raise ValueError(f"logits of {logits.shape[1]} tokens, not {self.vocab}")
        if len(rows) != count:
            raise ValueError(f"{len(rows)} rows for {count} sequences")
        for row in rows:
            if not 0 <= row < logits.shape[0]:
                raise ValueError(f"row {row} of {logits.shape[0]}")
            places.push_back(&logits[row, 0])
        return places
