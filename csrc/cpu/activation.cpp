// Gated activations of feed-forward layers (arXiv 2002.05202).
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/simd/math.h"

namespace fermi::cpu::FERMI_ISA {

namespace {

struct Silu {
    static Vec apply(Vec x) { return x / (broadcast(1.0F) + exp(zero() - x)); }
};
/// x Φ(x)
struct Gelu {
    static Vec apply(Vec x) { return broadcast(0.5F) * x * (broadcast(1.0F) + erf(x * broadcast(0.70710678F))); }
};
/// Its approximation by tanh (arXiv 1606.08415).
struct GeluTanh {
    static Vec apply(Vec x) {
        const Vec inner = broadcast(0.79788456F) * fma(broadcast(0.044715F) * x * x, x, x);
        return broadcast(0.5F) * x * (broadcast(1.0F) + tanh(inner));
    }
};
struct Relu {
    static Vec apply(Vec x) { return maximum(zero(), x); }
};

template <class Function>
void gate(const GatedActivation& op, const Lane& lane) {
    const std::int64_t n = op.out.size(1);
    // Items are pieces of rows, so that one token occupies all lanes too. A piece is a multiple of any vector.
    constexpr std::int64_t piece = 256;
    const std::int64_t pieces = (n + piece - 1) / piece;
    const Range items = lane.share(op.out.size(0) * pieces);
    for (std::int64_t item = items.begin; item < items.end; ++item) {
        const std::int64_t t = item / pieces;
        const std::int64_t end = std::min(n, (item % pieces + 1) * piece);
        const float* x = op.x.data<float>() + t * op.x.stride(0);
        float* out = op.out.data<float>() + t * op.out.stride(0);
        std::int64_t i = item % pieces * piece;
        for (; i + Vec::width <= end; i += Vec::width) {
            store(out + i, Function::apply(load(x + i)) * load(x + n + i));
        }
        if (i < end) {
            const int rest = static_cast<int>(end - i);
            store_partial(out + i, Function::apply(load_partial(x + i, rest)) * load_partial(x + n + i, rest), rest);
        }
    }
}

}  // namespace

void run(const GatedActivation& op, const Lane& lane) {
    switch (op.activation) {
        case Activation::silu:
            return gate<Silu>(op, lane);
        case Activation::gelu:
            return gate<Gelu>(op, lane);
        case Activation::gelu_tanh:
            return gate<GeluTanh>(op, lane);
        case Activation::relu:
            return gate<Relu>(op, lane);
    }
}

}  // namespace fermi::cpu::FERMI_ISA
