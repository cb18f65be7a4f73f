// Finding and opening backends.
#include "backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "temporary_folder.h"

namespace fermi {
namespace {

std::string refusal(const Device& device, const BackendOptions& options, const std::string& architecture,
                    const std::filesystem::path& folder = {}) {
    try {
        open_backend(device, options, architecture, folder);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

TEST(Backends, ThisMachineHasAPortableOne) {
    const auto architectures = cpu_architectures();
    ASSERT_FALSE(architectures.empty());
    EXPECT_EQ(architectures.back(), "portable");
    EXPECT_EQ(devices().front(), "cpu");
    EXPECT_EQ(open_backend({})->architecture(), architectures.front());
}

TEST(Backends, OpensEachArchitecture) {
    for (const std::string& architecture : cpu_architectures()) {
        const auto backend = open_backend({}, {.index = 0, .threads = 3}, architecture);
        EXPECT_EQ(backend->architecture(), architecture);
        EXPECT_EQ(backend->threads(), 3);
        EXPECT_EQ(backend->description(), "cpu (" + architecture + ", 3 threads)");
        EXPECT_GT(backend->memory().total, backend->memory().free / 2);
    }
}

TEST(Backends, NamesWhatIsAvailable) {
    EXPECT_NE(refusal({}, {}, "sse9").find("portable"), std::string::npos);
    EXPECT_NE(refusal({DeviceType::cuda, 0}, {}, "").find("cuda:0: there is no such backend; available: cpu"),
              std::string::npos);
    EXPECT_NE(refusal({}, {.index = 0, .threads = -1}, "").find("threads"), std::string::npos);
    EXPECT_NE(refusal({}, {.index = 0, .threads = 1'000'000'000}, "").find("threads"), std::string::npos);
}

TEST(Backends, LooksInTheFolderItIsGiven) {
    const test::TemporaryFolder folder;
    EXPECT_TRUE(cpu_architectures(folder.path()).empty());
    EXPECT_TRUE(devices(folder.path()).empty());
    EXPECT_NE(refusal({}, {}, "", folder.path()).find("usable here: none"), std::string::npos);
}

TEST(Backends, RefusesFilesThatAreNoBackends) {
    const test::TemporaryFolder folder;
    std::ofstream(folder.path() / "libfermi_cpu_portable.so") << "not a library";
    EXPECT_THROW(cpu_architectures(folder.path()), BackendError);
    std::ofstream(folder.path() / "libfermi_cuda.so") << "not a library";
    EXPECT_THROW(open_backend({DeviceType::cuda, 0}, {}, "", folder.path()), BackendError);
}

TEST(Backends, ScopesNestPerThread) {
    const auto outer = open_backend({}, {.index = 0, .threads = 1});
    const auto inner = open_backend({}, {.index = 0, .threads = 2});
    const Backend* shared = &current_backend({});
    {
        const BackendScope first(outer);
        EXPECT_EQ(&current_backend({}), outer.get());
        {
            const BackendScope second(inner);
            EXPECT_EQ(&current_backend({}), inner.get());
            std::thread([&] { EXPECT_EQ(&current_backend({}), shared); }).join();
        }
        EXPECT_EQ(&current_backend({}), outer.get());
    }
    EXPECT_EQ(&current_backend({}), shared);
    EXPECT_THROW(BackendScope(nullptr), InvalidArgument);
}

TEST(Backends, AllocateAlignedMemory) {
    const auto backend = open_backend({});
    for (const std::size_t bytes : {0UL, 1UL, 63UL, 4097UL, 3UL << 20}) {
        const auto storage = backend->allocate(bytes);
        EXPECT_GE(storage->bytes(), bytes);
        EXPECT_NE(storage->data(), nullptr);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(storage->data()) % 64, 0U);
        EXPECT_TRUE(storage->writable());
    }
    EXPECT_THROW(backend->allocate(SIZE_MAX / 2), OutOfMemory);
    EXPECT_THROW(backend->allocate(SIZE_MAX), OutOfMemory);
}

}  // namespace
}  // namespace fermi
