#include "cpu/memory_info.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#if defined(__APPLE__)
#include <mach/mach.h>
#endif

namespace fermi::cpu::FERMI_ISA {

namespace {

#if defined(__linux__)
/// A number that is a file's first word; none for a missing file or "max".
std::optional<std::uint64_t> number_in(const std::string& path) {
    std::ifstream file(path);
    std::uint64_t value = 0;
    if (file >> value) return value;
    return std::nullopt;
}

/// The figure behind `key` in a file of "key value [kB]" lines.
std::optional<std::uint64_t> field_of(const std::string& path, const std::string& key) {
    std::ifstream file(path);
    for (std::string word; file >> word;) {
        std::uint64_t value = 0;
        if (word == key && file >> value) return value;
        file.clear();
    }
    return std::nullopt;
}

/// This process's directory in the control-group hierarchy of `controller` ("" for v2): "/" where there is none.
std::string group_of(const std::string& controller) {
    std::ifstream file("/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) {  // "4:memory:/path", v2: "0::/path"
        const std::size_t first = line.find(':');
        const std::size_t second = line.find(':', first + 1);
        if (second != std::string::npos && line.substr(first + 1, second - first - 1) == controller) {
            return line.substr(second + 1);
        }
    }
    return "/";
}

/// Lowers `info` to what one group's limit leaves. Page cache that can be dropped counts as free.
void apply_limit(MemoryInfo& info, const std::string& folder, const char* limit_file, const char* usage_file) {
    const auto limit = number_in(folder + limit_file);
    const auto usage = number_in(folder + usage_file);
    if (!limit || !usage || *limit >= info.total) return;
    const std::uint64_t reclaimable = field_of(folder + "/memory.stat", "inactive_file").value_or(0);
    const std::uint64_t used = *usage - std::min(*usage, reclaimable);
    info.total = *limit;
    info.free = std::min(info.free, *limit - std::min(*limit, used));
}
#endif

}  // namespace

MemoryInfo memory_info() {
    MemoryInfo info;
    info.total =
        static_cast<std::uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    info.free = info.total;
#if defined(__linux__)
    if (const auto available = field_of("/proc/meminfo", "MemAvailable:")) info.free = *available * 1024;
    for (const std::string& group : {group_of(""), std::string()}) {
        apply_limit(info, "/sys/fs/cgroup" + group, "/memory.max", "/memory.current");
    }
    for (const std::string& group : {group_of("memory"), std::string()}) {
        apply_limit(info, "/sys/fs/cgroup/memory" + group, "/memory.limit_in_bytes", "/memory.usage_in_bytes");
    }
#elif defined(__APPLE__)
    vm_statistics64_data_t statistics{};
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&statistics), &count) ==
        KERN_SUCCESS) {
        const std::uint64_t pages = statistics.free_count + statistics.inactive_count + statistics.purgeable_count;
        info.free = pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    }
#endif
    return info;
}

}  // namespace fermi::cpu::FERMI_ISA
