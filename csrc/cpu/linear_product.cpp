#include "cpu/linear_product.h"

#include "cpu/linear_dense.h"
#include "cpu/linear_packed.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

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
                const ByteRows rows(x.data, weight.columns(), weight.group());
                PackedProduct<Dot, Format::value, Scale>(rows, weight, bias, item, results).run();
            });
        case InputKind::bf16:
            if constexpr (has_bf16_dot) {
                const DenseRows<bf16> rows{reinterpret_cast<const bf16*>(x.data), x.row_bytes / 2};
                DenseProduct<BFloat16Dot, bf16>(rows, weight, bias, item, results, saved).run();
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

}  // namespace fermi::cpu::FERMI_ISA
