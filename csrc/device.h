// Where memory lives: a kind of device and its index.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>

#include "export.h"

namespace fermi {

enum class DeviceType : std::uint8_t { cpu, cuda, metal };

struct Device {
    DeviceType type = DeviceType::cpu;
    int index = 0;

    bool operator==(const Device&) const = default;

    /// Parses "cpu", "cuda:1", "metal". Throws InvalidArgument.
    FERMI_API static Device parse(std::string_view text);
};

/// "cpu", "cuda:0", …
FERMI_API std::ostream& operator<<(std::ostream& stream, const Device& device);

}  // namespace fermi
