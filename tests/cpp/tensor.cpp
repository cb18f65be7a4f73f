// Tensors: bounds, views, overlap.
#include "tensor.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <numeric>

#include "overlap.h"

namespace fermi {
namespace {

/// f32 [shape] holding 0, 1, 2, …
Tensor counting(const Dims& shape) {
    const Tensor tensor = Tensor::empty(DType::f32, shape);
    std::iota(tensor.data<float>(), tensor.data<float>() + tensor.elements(), 0.0F);
    return tensor;
}

TEST(DType, HasSizeAndName) {
    EXPECT_EQ(size_of(DType::bf16), 2U);
    EXPECT_EQ(size_of(DType::i64), 8U);
    EXPECT_EQ(name_of(DType::boolean), "bool");
    EXPECT_TRUE(is_float(DType::f16));
    EXPECT_FALSE(is_float(DType::f64));
}

TEST(Device, ParsesWhatItPrints) {
    for (const Device device : {Device{DeviceType::cpu, 0}, {DeviceType::cuda, 3}, {DeviceType::metal, 0}}) {
        EXPECT_EQ(Device::parse(message(device)), device);
    }
    EXPECT_EQ(Device::parse("cuda"), (Device{DeviceType::cuda, 0}));
    for (const char* text : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "cpu:1", "CPU", "metal:2"}) {
        EXPECT_THROW(Device::parse(text), InvalidArgument) << text;
    }
}

TEST(Dims, HoldsSixAtMost) {
    EXPECT_EQ(Dims({2, 3}).rank(), 2);
    EXPECT_EQ(Dims({1, 2, 3, 4, 5, 6})[5], 6);
    EXPECT_THROW(Dims({1, 2, 3, 4, 5, 6, 7}), InvalidArgument);
    EXPECT_NE(Dims({2, 3}), Dims({2, 3, 1}));
    EXPECT_EQ(message(Dims({2, 3})), "[2, 3]");
}

TEST(Tensor, IsAlignedAndContiguous) {
    const Tensor tensor = Tensor::empty(DType::bf16, {3, 5});
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tensor.bytes_data()) % 64, 0U);
    EXPECT_EQ(tensor.strides(), Dims({5, 1}));
    EXPECT_EQ(tensor.bytes(), 30U);
    EXPECT_TRUE(tensor.contiguous());
    EXPECT_EQ(message(tensor), "bf16[3, 5]");
    EXPECT_EQ(message(Tensor()), "none");
}

TEST(Tensor, RefusesImpossibleShapes) {
    constexpr std::int64_t huge = std::numeric_limits<std::int64_t>::max();
    EXPECT_THROW(Tensor::empty(DType::f32, {-1}), InvalidArgument);
    EXPECT_THROW(Tensor::empty(DType::f32, {huge}), InvalidArgument);
    EXPECT_THROW(Tensor::empty(DType::f32, {huge, huge, 0}), InvalidArgument);
    EXPECT_THROW(Tensor::empty(DType::f32, {std::int64_t{1} << 50}), OutOfMemory);
    EXPECT_EQ(Tensor::empty(DType::f32, {0, 7}).bytes(), 0U);
}

TEST(Tensor, StaysInsideItsStorage) {
    const auto storage = heap_storage(64);  // 16 floats
    const auto view = [&](const Dims& shape, const Dims& strides, std::size_t offset) {
        return Tensor(storage, DType::f32, shape, strides, offset);
    };
    EXPECT_NO_THROW(view({4, 4}, {4, 1}, 0));
    EXPECT_NO_THROW(view({4, 4}, {-4, 1}, 48));
    EXPECT_NO_THROW(view({1000, 4}, {0, 1}, 48));
    EXPECT_NO_THROW(view({0, 1000}, {1000, 1}, 64));
    EXPECT_THROW(view({17}, {1}, 0), InvalidArgument);
    EXPECT_THROW(view({4}, {1}, 52), InvalidArgument);
    EXPECT_THROW(view({4, 4}, {-4, 1}, 44), InvalidArgument);
    EXPECT_THROW(view({2}, {std::numeric_limits<std::int64_t>::max()}, 0), InvalidArgument);
    EXPECT_THROW(view({3}, {std::numeric_limits<std::int64_t>::min()}, 0), InvalidArgument);
    EXPECT_THROW(view({1}, {1}, 128), InvalidArgument);
    EXPECT_THROW(view({1}, {1}, 2), InvalidArgument) << "not aligned";
    EXPECT_THROW(view({4}, {1, 1}, 0), InvalidArgument);
    EXPECT_THROW(Tensor(nullptr, DType::f32, {1}, {1}, 0), InvalidArgument);
}

TEST(Tensor, Narrows) {
    const Tensor tensor = counting({3, 4});
    const Tensor view = tensor.narrow(1, 1, 2).narrow(0, 2, 1);
    EXPECT_EQ(view.shape(), Dims({1, 2}));
    EXPECT_EQ(*view.data<float>(), 9.0F);
    EXPECT_FALSE(tensor.narrow(-1, 1, 2).contiguous());
    EXPECT_EQ(tensor.narrow(0, 3, 0).elements(), 0);
    EXPECT_THROW(tensor.narrow(0, 2, 2), InvalidArgument);
    EXPECT_THROW(tensor.narrow(0, -1, 1), InvalidArgument);
    EXPECT_THROW(tensor.narrow(0, 1, std::numeric_limits<std::int64_t>::max()), InvalidArgument);
    EXPECT_THROW(tensor.narrow(2, 0, 1), InvalidArgument);
    EXPECT_THROW(Tensor().narrow(0, 0, 0), InvalidArgument);
}

TEST(Tensor, UnflattensStridedAxes) {
    const Tensor view = counting({2, 12}).narrow(1, 4, 6).unflatten(1, {-1, 3});
    EXPECT_EQ(view.shape(), Dims({2, 2, 3}));
    EXPECT_EQ(view.strides(), Dims({12, 3, 1}));
    EXPECT_EQ(view.data<float>()[view.stride(0) + view.stride(1)], 19.0F);
    EXPECT_EQ(counting({6}).unflatten(0, {2, 3, 1, 1}).rank(), 4);
    EXPECT_THROW(view.unflatten(1, {3, -1}), InvalidArgument);
    EXPECT_THROW(view.unflatten(1, {-1, -1}), InvalidArgument);
    EXPECT_THROW(view.unflatten(1, {-2, -1}), InvalidArgument);
    EXPECT_THROW(view.unflatten(0, {2, 1, 1, 1, 1}), InvalidArgument) << "rank 7";
    EXPECT_THROW(counting({0}).unflatten(0, {0, -1}), InvalidArgument);
    EXPECT_THROW(counting({0}).unflatten(0, {std::int64_t{1} << 62, 4, 0}), InvalidArgument);
}

TEST(Tensor, ReshapesContiguousMemory) {
    const Tensor tensor = counting({2, 6});
    EXPECT_EQ(tensor.reshape({3, -1}).shape(), Dims({3, 4}));
    EXPECT_EQ(tensor.reshape({12}).data<float>()[7], 7.0F);
    EXPECT_THROW(tensor.reshape({5, -1}), InvalidArgument);
    EXPECT_THROW(tensor.reshape({11}), InvalidArgument);
    EXPECT_THROW(tensor.transpose(0, 1).reshape({12}), InvalidArgument);
    EXPECT_EQ(tensor.narrow(0, 0, 1).transpose(0, 1).reshape({2, 3}).stride(0), 3) << "an axis of 1 has any stride";
}

TEST(Tensor, Transposes) {
    const Tensor view = counting({2, 3}).transpose(0, -1);
    EXPECT_EQ(view.shape(), Dims({3, 2}));
    EXPECT_EQ(view.data<float>()[view.stride(0) * 2 + view.stride(1)], 5.0F);
    EXPECT_THROW(view.transpose(0, 2), InvalidArgument);
}

TEST(Tensor, KeepsItsLeaseThroughViews) {
    const auto lease = std::make_shared<int>(0);
    const std::weak_ptr<int> watch = lease;
    Tensor view = Tensor(heap_storage(64), DType::f32, {4, 4}, {4, 1}, 0, lease).narrow(0, 1, 2);
    EXPECT_EQ(watch.use_count(), 2);
    const Tensor stripped = view.without_lease();
    EXPECT_EQ(watch.use_count(), 2);
    view = Tensor();
    EXPECT_EQ(watch.use_count(), 1);
    EXPECT_TRUE(stripped.defined());
}

TEST(Overlap, TellsRowsSideBySideApart) {
    const Tensor all = counting({4, 12});
    const Tensor q = all.narrow(1, 0, 6);
    const Tensor k = all.narrow(1, 6, 3);
    EXPECT_FALSE(overlap(q, k));
    EXPECT_FALSE(overlap(k, q));
    EXPECT_FALSE(overlap(q.unflatten(1, {2, 3}), k.unflatten(1, {1, 3})));
    EXPECT_TRUE(overlap(q, all.narrow(1, 5, 3)));
    EXPECT_TRUE(overlap(all.narrow(1, 5, 3), q));
    EXPECT_TRUE(overlap(q, q));
    EXPECT_FALSE(overlap(all.narrow(0, 0, 2), all.narrow(0, 2, 2)));
    EXPECT_FALSE(overlap(all, counting({4, 12})));
    EXPECT_TRUE(same_range(q, k));
    EXPECT_FALSE(overlap(q, Tensor::empty(DType::f32, {0, 6})));
}

TEST(Overlap, FindsBroadcastAxes) {
    const auto storage = heap_storage(64);
    EXPECT_TRUE(overlaps_itself(Tensor(storage, DType::f32, {4, 4}, {0, 1}, 0)));
    EXPECT_TRUE(overlaps_itself(Tensor(storage, DType::f32, {4, 4}, {2, 1}, 0)));
    EXPECT_FALSE(overlaps_itself(Tensor(storage, DType::f32, {4, 4}, {1, 4}, 0)));
    EXPECT_FALSE(overlaps_itself(Tensor(storage, DType::f32, {4, 4}, {-4, 1}, 48)));
    EXPECT_FALSE(overlaps_itself(Tensor(storage, DType::f32, {1, 4}, {0, 1}, 0)));
}

}  // namespace
}  // namespace fermi
