// Elementwise copies between strided views, converting between float dtypes.
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// A run of elements along the last dimension.
struct Row {
    std::int64_t count;
    std::int64_t to_stride;
    std::int64_t from_stride;
};

template <class To, class From>
void convert_row(To* to, const From* from, const Row& row) {
    std::int64_t i = 0;
    if (row.to_stride == 1 && row.from_stride == 1) {
        for (; i + Vec::width <= row.count; i += Vec::width) store(to + i, load(from + i));
    }
    for (; i < row.count; ++i) from_float(to_float(from[i * row.from_stride]), to[i * row.to_stride]);
}

template <class Word>
void move_row(Word* to, const Word* from, const Row& row) {
    if (row.to_stride == 1 && row.from_stride == 1) {
        std::memmove(to, from, static_cast<std::size_t>(row.count) * sizeof(Word));
    } else {
        for (std::int64_t i = 0; i < row.count; ++i) to[i * row.to_stride] = from[i * row.from_stride];
    }
}

/// Calls each(to, from) for this lane's share of the rows, with the offsets, in elements, where they start.
template <class Each>
void for_rows(const Copy& op, const Lane& lane, Each&& each) {
    const Dims& shape = op.source.shape();
    const int outer = shape.rank() - 1;
    std::int64_t rows = 1;
    for (int axis = 0; axis < outer; ++axis) rows *= shape[axis];
    const Range range = lane.share(rows);
    for (std::int64_t r = range.begin; r < range.end; ++r) {
        std::int64_t to = 0, from = 0, rest = r;
        for (int axis = outer - 1; axis >= 0; --axis) {
            const std::int64_t index = rest % shape[axis];
            rest /= shape[axis];
            to += index * op.destination.stride(axis);
            from += index * op.source.stride(axis);
        }
        each(to, from);
    }
}

template <class Word>
void move(const Copy& op, const Lane& lane, const Row& row) {
    for_rows(op, lane, [&](std::int64_t to, std::int64_t from) {
        move_row(op.destination.data<Word>() + to, op.source.data<Word>() + from, row);
    });
}

void move(const Copy& op, const Lane& lane, const Row& row) {
    switch (size_of(op.source.dtype())) {
        case 1:
            return move<std::uint8_t>(op, lane, row);
        case 2:
            return move<std::uint16_t>(op, lane, row);
        case 4:
            return move<std::uint32_t>(op, lane, row);
        default:
            return move<std::uint64_t>(op, lane, row);
    }
}

void convert(const Copy& op, const Lane& lane, const Row& row) {
    with_float(op.destination.dtype(), [&]<class To>(To) {
        with_float(op.source.dtype(), [&]<class From>(From) {
            for_rows(op, lane, [&](std::int64_t to, std::int64_t from) {
                convert_row(op.destination.data<To>() + to, op.source.data<From>() + from, row);
            });
        });
    });
}

}  // namespace

void run(const Copy& op, const Lane& lane) {
    const int rank = op.source.rank();
    if (rank == 0) {
        if (lane.index == 0) {
            // A scalar is a row of one.
            const Row one{1, 1, 1};
            Copy row = op;
            row.source = op.source.reshape({1});
            row.destination = op.destination.reshape({1});
            const Lane alone{0, 1, lane.tickets, lane.barrier, lane.shared, lane.own};
            op.source.dtype() == op.destination.dtype() ? move(row, alone, one) : convert(row, alone, one);
        }
        return;
    }
    const Row row{op.source.size(-1), op.destination.stride(-1), op.source.stride(-1)};
    op.source.dtype() == op.destination.dtype() ? move(op, lane, row) : convert(op, lane, row);
}

}  // namespace fermi::cpu::FERMI_ISA
