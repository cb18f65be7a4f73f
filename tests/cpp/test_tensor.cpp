// Views of tensors.
#include <gtest/gtest.h>

#include "dtype.h"

namespace fermi {

TEST(DType, SizesMatchNames) {
    EXPECT_EQ(size_of(DType::bf16), 2U);
    EXPECT_EQ(name_of(DType::bf16), "bf16");
}

}  // namespace fermi
