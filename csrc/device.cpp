// Names of devices.
#include "device.h"

#include <charconv>

#include "error.h"

namespace fermi {
namespace {

std::string_view name_of(DeviceType type) {
    switch (type) {
        case DeviceType::cpu:
            return "cpu";
        case DeviceType::cuda:
            return "cuda";
        case DeviceType::metal:
            return "metal";
    }
    return "?";
}

}  // namespace

Device Device::parse(std::string_view text) {
    const std::string_view name = text.substr(0, text.find(':'));
    for (const DeviceType type : {DeviceType::cpu, DeviceType::cuda, DeviceType::metal}) {
        if (name != name_of(type)) continue;
        if (name.size() == text.size()) return {type, 0};
        const std::string_view digits = text.substr(name.size() + 1);
        int index = -1;
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), index);
        const bool whole = error == std::errc() && end == digits.data() + digits.size();
        if (whole && index >= 0 && (type == DeviceType::cuda || index == 0)) return {type, index};
    }
    throw InvalidArgument(message("device: \"", text, "\" is none of cpu, cuda, cuda:<index>, metal"));
}

std::ostream& operator<<(std::ostream& stream, const Device& device) {
    stream << name_of(device.type);
    if (device.type == DeviceType::cuda) stream << ':' << device.index;
    return stream;
}

}  // namespace fermi
