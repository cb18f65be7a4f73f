// Counting the processors that this process may use.
#pragma once

#include <filesystem>
#include <optional>
#include <span>

#include "export.h"

namespace fermi {

/// Distinct physical cores among the logical processors `allowed`, by the kernel's topology files under `processors`
/// ("/sys/devices/system/cpu"); a processor without such files counts as a core.
FERMI_API int count_cores(const std::filesystem::path& processors, std::span<const int> allowed);

/// Processors' worth of time that control groups grant this process, the least of all levels; nothing if unlimited.
/// `root` is where "/proc/self/cgroup" and "/sys/fs/cgroup" are looked up.
FERMI_API std::optional<double> processor_quota(const std::filesystem::path& root);

}  // namespace fermi
