# cython: language_level=3, cdivision=True
"""What one sequence's next token depends on besides its logits, inlined into the sampler."""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from fermi.engine._loops cimport apply_mask, bounded


cdef struct Rules:
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


cdef inline bint adjusts(Rules* rules) noexcept nogil:
    return (
        rules.allowed != NULL or rules.seen.size() > 0 or rules.bias_tokens.size() > 0
        or (rules.drawn < rules.min_tokens and rules.stops.size() > 0)
    )


cdef inline bint penalizes(Rules* rules) noexcept nogil:
    return rules.repetition != 1.0 or rules.presence != 0.0 or rules.frequency != 0.0


cdef inline void see(Rules* rules, int32_t token, int32_t times) noexcept nogil:
    cdef int32_t place
    if rules.places.count(token):
        place = rules.places[token]
    else:
        place = <int32_t>rules.seen.size()
        rules.places[token] = place
        rules.seen.push_back(token)
        rules.counts.push_back(0)
    rules.counts[place] += times


cdef inline void adjust(Rules* rules, float* row, Py_ssize_t vocab) noexcept nogil:
    """Masks, penalties and bias, in place; `row` holds bounded logits."""
    cdef Py_ssize_t i
    cdef float logit
    if rules.allowed != NULL:
        apply_mask(row, vocab, rules.allowed)
    if rules.drawn < rules.min_tokens:
        for i in range(<Py_ssize_t>rules.stops.size()):
            row[rules.stops[i]] = -INFINITY
    for i in range(<Py_ssize_t>rules.seen.size()):
        logit = row[rules.seen[i]]
        logit = logit / rules.repetition if logit > 0 else logit * rules.repetition
        if rules.counts[i] > 0:
            logit -= rules.presence + rules.frequency * <float>rules.counts[i]
        row[rules.seen[i]] = bounded(logit)
    for i in range(<Py_ssize_t>rules.bias_tokens.size()):
        row[rules.bias_tokens[i]] = bounded(row[rules.bias_tokens[i]] + rules.biases[i])
