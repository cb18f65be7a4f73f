// The values of an op's index tensors, checked before a kernel follows them.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "export.h"
#include "ops.h"

namespace fermi {

/// Shapes are checked when an op is described; what its indices say is known only when it runs. This collects the
/// limits of every index tensor on the CPU, once however many ops share it, and looks at the values before each run:
/// kernels then need no checks and a wrong index is an exception. (Device memory is not read back: there kernels mask.)
class FERMI_API IndexChecks {
  public:
    void add(const Op& op);
    /// Throws InvalidArgument naming op, operand, place and value.
    void run() const;
    /// Whether the tensor's memory overlaps that of an index tensor added before.
    bool cover(const Tensor& tensor) const;

  private:
    /// Every value lies in [low, high).
    struct Limits {
        std::string_view op;
        std::string_view operand;
        Tensor values;
        std::int64_t low;
        std::int64_t high;
        bool operator==(const Limits& other) const;
    };

    /// The ragged layout of attention is consistent, and every block that is read exists.
    struct Tables {
        Tensor block_tables;
        Tensor query_starts;
        Tensor context_lengths;
        std::int64_t tokens;
        std::int64_t blocks;
        std::int64_t block_size;
        std::int64_t window;
        bool operator==(const Tables& other) const;
    };

    static void check(const Limits& limits);
    static void check(const Tables& tables);
    void add(Limits limits);

    std::vector<Limits> limits_;
    std::vector<Tables> tables_;
};

}  // namespace fermi
