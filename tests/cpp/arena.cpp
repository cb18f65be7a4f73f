// The planner of intermediate memory.
#include "arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "error.h"

namespace fermi {
namespace {

std::shared_ptr<Arena> new_arena() {
    return std::make_shared<Arena>(Device{});
}

TEST(Arena, ReusesWhatWasGivenBack) {
    const auto arena = new_arena();
    auto first = Arena::take(arena, 100);
    const auto second = Arena::take(arena, 64);
    EXPECT_EQ(first.offset, 0U);
    EXPECT_EQ(second.offset, 128U);
    first.lease.reset();
    EXPECT_EQ(Arena::take(arena, 1).offset, 0U);
    EXPECT_EQ(arena->bytes(), 192U);
}

TEST(Arena, TakesTheTightestRange) {
    const auto arena = new_arena();
    auto large = Arena::take(arena, 640);
    const auto between = Arena::take(arena, 64);
    auto small = Arena::take(arena, 128);
    const auto end = Arena::take(arena, 64);
    large.lease.reset();
    small.lease.reset();
    EXPECT_EQ(Arena::take(arena, 128).offset, small.offset);
    EXPECT_EQ(Arena::take(arena, 600).offset, large.offset);
}

TEST(Arena, MergesNeighboursAndGrowsTheLastRange) {
    const auto arena = new_arena();
    std::vector<Arena::Range> ranges;
    for (int i = 0; i < 4; ++i) ranges.push_back(Arena::take(arena, 64));
    for (const std::size_t i : {1U, 3U, 2U}) ranges[i].lease.reset();
    EXPECT_EQ(Arena::take(arena, 192).offset, 64U);
    EXPECT_EQ(arena->bytes(), 256U);
    EXPECT_EQ(Arena::take(arena, 320).offset, 64U) << "the free range at the end is extended";
    EXPECT_EQ(arena->bytes(), 384U);
}

TEST(Arena, LivesAsLongAsItsLeases) {
    auto arena = new_arena();
    const std::weak_ptr<Arena> watch = arena;
    auto range = Arena::take(arena, 64);
    arena.reset();
    EXPECT_FALSE(watch.expired());
    range.lease.reset();
    EXPECT_TRUE(watch.expired());
}

TEST(Arena, RefusesAbsurdSizes) {
    EXPECT_THROW(Arena::take(new_arena(), SIZE_MAX), OutOfMemory);
    const auto arena = new_arena();
    const auto first = Arena::take(arena, std::size_t{1} << 62);
    const auto second = Arena::take(arena, std::size_t{1} << 62);
    EXPECT_THROW(Arena::take(arena, std::size_t{1} << 62), OutOfMemory);
}

TEST(Arena, ForgetsLeasesOnceSealed) {
    const auto arena = new_arena();
    auto range = Arena::take(arena, 64);
    EXPECT_EQ(arena->data(), nullptr);
    EXPECT_THROW(arena->seal(heap_storage(32)), InvalidArgument);
    arena->seal(heap_storage(64));
    EXPECT_NE(arena->data(), nullptr);
    range.lease.reset();
    EXPECT_EQ(arena->bytes(), 64U);
}

/// Random programs: live ranges never meet, and the arena is not much larger than the most that lived at once.
TEST(Arena, KeepsLiveRangesApart) {
    struct Live {
        Arena::Range range;
        std::size_t end;
    };
    for (unsigned seed = 0; seed < 50; ++seed) {
        std::mt19937 random(seed);
        const auto arena = new_arena();
        std::vector<Live> live;
        std::size_t used = 0;
        std::size_t most = 0;
        for (int step = 0; step < 400; ++step) {
            if (live.size() < 12 && (live.empty() || random() % 2 == 0)) {
                const std::size_t bytes = random() % 5000;
                Arena::Range range = Arena::take(arena, bytes);
                ASSERT_EQ(range.offset % Arena::alignment, 0U);
                const std::size_t end = range.offset + bytes;
                ASSERT_LE(end, arena->bytes());
                for (const Live& other : live) ASSERT_TRUE(end <= other.range.offset || other.end <= range.offset);
                used += bytes;
                live.push_back({std::move(range), end});
            } else {
                const auto gone = live.begin() + static_cast<std::ptrdiff_t>(random() % live.size());
                used -= gone->end - gone->range.offset;
                live.erase(gone);
            }
            most = std::max(most, used);
        }
        live.clear();
        EXPECT_LE(arena->bytes(), 2 * most);
        EXPECT_EQ(Arena::take(arena, arena->bytes()).offset, 0U) << "everything came back in one piece";
    }
}

}  // namespace
}  // namespace fermi
