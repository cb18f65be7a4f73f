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

    /// Rises from 0 to the number of tokens.
    struct Starts {
        std::string_view op;
        Tensor values;
        std::int64_t tokens;
        bool operator==(const Starts& other) const;
    };

    /// The experts that an op of the same recording chooses: right by construction, known only while it runs, and
    /// nothing else has written them since.
    struct Chosen {
        Tensor values;
        std::int64_t among;
    };

    static void check(const Limits& limits);
    static void check(const Starts& starts);
    static void check(const Tables& tables);
    void add(Limits limits);
    void add(Starts starts);
    void add(const ExpertLinear& op);
    void forget_overwritten(const Op& op);

    std::vector<Limits> limits_;
    std::vector<Tables> tables_;
    std::vector<Starts> starts_;
    std::vector<Chosen> chosen_;
};

}  // namespace fermi
