#include "cpu/linear_product.h"

#include <algorithm>

#include "cpu/linear_dense.h"
#include "cpu/linear_packed.h"
#include "cpu/linear_terms.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

/// Up to this many tokens meet bf16 weights unrounded: as two terms, or in f32.
constexpr std::int64_t exact_tokens = 4;
/// Columns whose terms take at most half of the first-level cache.
constexpr std::int64_t term_columns = 4096;
/// Tokens that an item works on: what they need of x for one panel, or all of their int8 rows, stays in the
/// second-level cache.
constexpr std::int64_t panel_block_tokens = 128;
constexpr std::int64_t byte_block_bytes = 384 << 10;
/// Up to this many tokens, memory is the limit: items are long, to be read in one sweep.
constexpr std::int64_t stream_tokens = 32;
/// Bytes of weights that an item then has at most, so that lanes end together.
constexpr std::int64_t stream_bytes = 384 << 10;

/// Calls visitor(Dot{}, FormatTag{}, Scale{}) for a packed weight.
template <class Visitor>
void with_packed(const Weight& weight, Visitor&& visitor) {
    const auto with_scale = [&](auto dot, auto format) {
        weight.scales.dtype() == DType::f16 ? visitor(dot, format, f16{}) : visitor(dot, format, float{});
    };
    const auto with_format = [&](auto dot) {
        weight.format == WeightFormat::int8 ? with_scale(dot, FormatTag<WeightFormat::int8>{})
                                            : with_scale(dot, FormatTag<WeightFormat::int4>{});
    };
    static const bool fast = fast_byte_dot_usable();
    fast ? with_format(FastByteDot{}) : with_format(PlainByteDot{});
}

}  // namespace

void multiply(const ProductRows& x, const Weight& weight, const Tensor* bias, const Item& item, const Results& results,
              Vec* saved) {
    switch (x.kind) {
        case InputKind::bytes:
            return with_packed(weight, [&]<class Dot, class Format, class Scale>(Dot, Format, Scale) {
                const ByteRows rows(const_cast<std::byte*>(x.data), weight.columns(), weight.group(), x.bundle);
                PackedProduct<Dot, Format::value, Scale>(rows, weight, bias, item, results).run();
            });
        case InputKind::bf16:
            if constexpr (has_bf16_dot) {
                const DenseRows<bf16> rows{reinterpret_cast<const bf16*>(x.data), x.row_bytes / 2};
                DenseProduct<BFloat16Dot, bf16>(rows, weight, bias, item, results, saved).run();
            }
            return;
        case InputKind::bf16_terms:
            if constexpr (has_bf16_dot) {
                TermsProduct<BFloat16Dot>({reinterpret_cast<const bf16*>(x.data), x.row_bytes / 2}, weight, bias, item,
                                          results)
                    .run();
            }
            return;
        case InputKind::f32:
        case InputKind::as_it_is: {
            const DenseRows<float> rows{reinterpret_cast<const float*>(x.data), x.row_bytes / 4};
            return with_float(weight.data.dtype(), [&]<class W>(W) {
                DenseProduct<FloatDot<W>, W>(rows, weight, bias, item, results, saved).run();
            });
        }
    }
}

InputKind dense_kind(DType dtype, std::int64_t tokens, std::int64_t columns, Numerics numerics, InputKind other) {
    static const bool usable = bf16_dot_usable();
    if (!usable || numerics != Numerics::fast || dtype != DType::bf16) return other;
    if (tokens > exact_tokens) return InputKind::bf16;
    return columns <= term_columns ? InputKind::bf16_terms : other;
}

bool streams(std::int64_t tokens) {
    return tokens <= stream_tokens;
}

std::int64_t tokens_per_item(InputKind kind, std::int64_t tokens, std::int64_t columns) {
    if (tokens <= 2) return std::max<std::int64_t>(1, tokens);
    std::int64_t fitting = panel_block_tokens;
    if (kind == InputKind::bytes) {
        fitting = std::clamp<std::int64_t>(byte_block_bytes / std::max<std::int64_t>(1, columns), 1, 256);
    }
    const std::int64_t blocks = (tokens + fitting - 1) / fitting;
    // Equal blocks: 257 tokens are not 256 and 1.
    return round_up((tokens + blocks - 1) / blocks, kind == InputKind::bytes ? rows_of_bundle(tokens) : tile_rows);
}

std::int64_t tile_outputs(InputKind kind) {
    return kind == InputKind::bytes ? byte_tile_strips * strip_rows : 2 * tile_columns;
}

std::int64_t outputs_per_item(InputKind kind, const Weight& weight, std::int64_t tokens, std::int64_t rows,
                              bool buffered, int lanes) {
    const std::int64_t tile = tile_outputs(kind);
    if (streams(tokens)) {
        const auto row_bytes = static_cast<std::int64_t>(weight.bytes()) / std::max<std::int64_t>(1, weight.rows());
        const std::int64_t most = round_up(stream_bytes / std::max<std::int64_t>(1, row_bytes), tile);
        return std::clamp(round_up(rows / (8 * lanes), tile), tile, most);
    }
    return std::clamp(round_up(rows / (8 * lanes), tile), tile, round_up(buffered ? 32 : 144, tile));
}

}  // namespace fermi::cpu::FERMI_ISA
