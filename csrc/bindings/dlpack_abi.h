// The structures of DLPack 1.0 (github.com/dmlc/dlpack, dlpack.h), which libraries pass each other in capsules.
#pragma once

#include <cstdint>

namespace fermi::python::dlpack {

inline constexpr std::uint32_t major_version = 1;
inline constexpr std::uint32_t minor_version = 0;
inline constexpr std::int32_t device_cpu = 1;
inline constexpr std::uint64_t flag_read_only = 1;

inline constexpr std::uint8_t code_int = 0;
inline constexpr std::uint8_t code_uint = 1;
inline constexpr std::uint8_t code_float = 2;
inline constexpr std::uint8_t code_bfloat = 4;
inline constexpr std::uint8_t code_bool = 6;

struct Device {
    std::int32_t type;
    std::int32_t index;
};

struct DataType {
    std::uint8_t code;
    std::uint8_t bits;
    std::uint16_t lanes;
};

struct View {  // DLTensor
    void* data;
    Device device;
    std::int32_t rank;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  // elements; null: contiguous (producers before 1.2)
    std::uint64_t byte_offset;
};

struct Managed {  // DLManagedTensor, capsule "dltensor"
    View view;
    void* context;
    void (*deleter)(Managed*);
};

struct Version {
    std::uint32_t major;
    std::uint32_t minor;
};

struct ManagedVersioned {  // DLManagedTensorVersioned, capsule "dltensor_versioned"
    Version version;
    void* context;
    void (*deleter)(ManagedVersioned*);
    std::uint64_t flags;
    View view;
};

}  // namespace fermi::python::dlpack
