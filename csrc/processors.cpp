// Counts processors as Linux's topology files, affinity masks and control groups (v1 and v2), or macOS, report them.
#include "processors.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "error.h"
#include "thread_pool.h"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace fermi {
namespace {

std::string first_line(const std::filesystem::path& path) {
    std::ifstream file(path);
    std::string line;
    std::getline(file, line);
    return line;
}

/// quota / period of one control group, or nothing.
std::optional<double> quota_of(const std::filesystem::path& group) {
    double quota = 0;
    double period = 0;
    if (std::ifstream file(group / "cpu.max"); file >> quota >> period) {  // v2; "max" does not parse: unlimited
        return quota > 0 && period > 0 ? std::optional(quota / period) : std::nullopt;
    }
    std::ifstream quota_file(group / "cpu.cfs_quota_us");
    std::ifstream period_file(group / "cpu.cfs_period_us");
    if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) return quota / period;
    return std::nullopt;
}

#if defined(__linux__)
std::vector<int> allowed_processors() {
    std::vector<int> allowed;
    for (int capacity = 1024; capacity <= (1 << 20); capacity *= 4) {  // grows until it holds the kernel's mask
        cpu_set_t* set = CPU_ALLOC(static_cast<std::size_t>(capacity));
        if (set == nullptr) break;
        const std::size_t bytes = CPU_ALLOC_SIZE(static_cast<std::size_t>(capacity));
        const bool known = sched_getaffinity(0, bytes, set) == 0;
        for (int processor = 0; known && processor < capacity; ++processor) {
            if (CPU_ISSET_S(static_cast<std::size_t>(processor), bytes, set)) allowed.push_back(processor);
        }
        CPU_FREE(set);
        if (known) break;
    }
    return allowed;
}
#endif

}  // namespace

int count_cores(const std::filesystem::path& processors, std::span<const int> allowed) {
    std::set<std::string> cores;  // the list of a core's logical processors names it: core ids repeat between dies
    for (const int processor : allowed) {
        const auto topology = processors / message("cpu", processor) / "topology";
        std::string siblings = first_line(topology / "core_cpus_list");
        if (siblings.empty()) siblings = first_line(topology / "thread_siblings_list");
        cores.insert(siblings.empty() ? message("alone ", processor) : siblings);
    }
    return static_cast<int>(cores.size());
}

std::optional<double> processor_quota(const std::filesystem::path& root) {
    const std::filesystem::path mount = root / "sys/fs/cgroup";
    std::optional<double> least;
    std::ifstream groups(root / "proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {  // "0::/a/b" (v2) or "4:cpu,cpuacct:/a/b" (v1)
        const auto first = line.find(':');
        const auto second = line.find(':', first + 1);
        if (first == std::string::npos || second == std::string::npos) continue;
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        std::filesystem::path hierarchy = mount;
        if (controllers != ",,") {
            if (controllers.find(",cpu,") == std::string::npos) continue;
            hierarchy /= "cpu";
        }
        // Inside a container the path may be the host's, which is not mounted: its missing files mean no limit.
        std::filesystem::path relative = std::filesystem::path(line.substr(second + 1)).relative_path();
        for (;;) {
            if (const auto quota = quota_of(hierarchy / relative)) least = std::min(*quota, least.value_or(*quota));
            if (relative.empty()) break;
            relative = relative.parent_path();
        }
    }
    return least;
}

int physical_cores() {
    int cores = 0;
#if defined(__linux__)
    cores = count_cores("/sys/devices/system/cpu", allowed_processors());
    if (const auto quota = processor_quota("/")) cores = std::clamp(static_cast<int>(*quota), 1, std::max(cores, 1));
#elif defined(__APPLE__)
    // Lanes share work evenly, so the efficiency cores would only hold the performance cores up.
    std::size_t size = sizeof cores;
    if (sysctlbyname("hw.perflevel0.physicalcpu", &cores, &size, nullptr, 0) != 0) {
        size = sizeof cores;
        if (sysctlbyname("hw.physicalcpu", &cores, &size, nullptr, 0) != 0) cores = 0;
    }
#endif
    if (cores == 0) cores = static_cast<int>(std::thread::hardware_concurrency());
    return std::max(cores, 1);
}

}  // namespace fermi
