// Counting cores by topology files and control groups, as several machines show them.
#include "processors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "temporary_folder.h"
#include "thread_pool.h"

namespace fermi {
namespace {

namespace fs = std::filesystem;
using test::TemporaryFolder;

void write(const fs::path& path, const std::string& text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text;
}

TEST(Processors, CountsSiblingsOnce) {
    const TemporaryFolder folder;
    for (const auto& [cpu, siblings] : {std::pair("cpu0", "0,4"), {"cpu4", "0,4"}, {"cpu1", "1,5"}, {"cpu5", "1,5"}}) {
        write(folder.path() / cpu / "topology" / "core_cpus_list", siblings);
    }
    write(folder.path() / "cpu2" / "topology" / "thread_siblings_list", "2-3");  // kernels before 5.3
    write(folder.path() / "cpu3" / "topology" / "thread_siblings_list", "2-3");
    EXPECT_EQ(count_cores(folder.path(), std::vector{0, 1, 2, 3, 4, 5}), 3);
    EXPECT_EQ(count_cores(folder.path(), std::vector{0, 4}), 1);
    EXPECT_EQ(count_cores(folder.path(), std::vector{0, 7, 8}), 3) << "processors without files count by themselves";
    EXPECT_EQ(count_cores(folder.path(), {}), 0);
}

TEST(Processors, ReadsQuotasOfVersionTwo) {
    const TemporaryFolder folder;
    write(folder.path() / "proc/self/cgroup", "0::/system.slice/fermi.service\n");
    EXPECT_FALSE(processor_quota(folder.path()).has_value());
    write(folder.path() / "sys/fs/cgroup/system.slice/fermi.service/cpu.max", "max 100000\n");
    EXPECT_FALSE(processor_quota(folder.path()).has_value());
    write(folder.path() / "sys/fs/cgroup/system.slice/cpu.max", "250000 100000\n");
    EXPECT_DOUBLE_EQ(processor_quota(folder.path()).value_or(0), 2.5);
    write(folder.path() / "sys/fs/cgroup/cpu.max", "150000 100000\n");
    EXPECT_DOUBLE_EQ(processor_quota(folder.path()).value_or(0), 1.5) << "the least of all levels";
}

TEST(Processors, ReadsQuotasOfVersionOne) {
    const TemporaryFolder folder;
    write(folder.path() / "proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/x\n");
    write(folder.path() / "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "-1\n");
    write(folder.path() / "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us", "100000\n");
    EXPECT_FALSE(processor_quota(folder.path()).has_value());
    write(folder.path() / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n");
    write(folder.path() / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    EXPECT_DOUBLE_EQ(processor_quota(folder.path()).value_or(0), 3.0);
}

TEST(Processors, SurvivesMalformedFiles) {
    const TemporaryFolder folder;
    write(folder.path() / "proc/self/cgroup", "\nnonsense\n::\n0:\n0::\n");
    write(folder.path() / "sys/fs/cgroup/cpu.max", "0 0\n");
    EXPECT_FALSE(processor_quota(folder.path()).has_value());
}

TEST(Processors, ThisMachineHasACore) {
    EXPECT_GE(physical_cores(), 1);
}

}  // namespace
}  // namespace fermi
