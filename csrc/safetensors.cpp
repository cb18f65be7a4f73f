// Reads and checks the header; tensors are views of the mapped file.
#include "safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "json.h"
#include "mapped_file.h"

namespace fermi {
namespace {

constexpr std::uint64_t length_bytes = 8;
constexpr std::uint64_t largest_header = 100'000'000;  // as the format's own library

/// One entry of the header.
struct Entry {
    std::string name;
    DType dtype = DType::f32;
    Dims shape;
    std::uint64_t begin = 0;  // bytes from the end of the header
    std::uint64_t end = 0;
};

DType dtype_of(std::string_view tensor, std::string_view name) {
    constexpr std::array<std::pair<std::string_view, DType>, 10> names{{{"F32", DType::f32},
                                                                        {"F16", DType::f16},
                                                                        {"BF16", DType::bf16},
                                                                        {"F64", DType::f64},
                                                                        {"I8", DType::i8},
                                                                        {"U8", DType::u8},
                                                                        {"I16", DType::i16},
                                                                        {"I32", DType::i32},
                                                                        {"I64", DType::i64},
                                                                        {"BOOL", DType::boolean}}};
    for (const auto& [known, dtype] : names) {
        if (known == name) return dtype;
    }
    throw FormatError(message("tensor ", tensor, ": unknown dtype ", name));
}

class Header {
  public:
    explicit Header(std::string_view text) : reader_(text) {
        reader_.object([&](const std::string& name) {
            if (name == "__metadata__") {
                read_metadata();
            } else {
                entries_.push_back(read_entry(name));
            }
        });
        reader_.end();
    }

    std::vector<Entry>& entries() { return entries_; }
    std::map<std::string, std::string>& metadata() { return metadata_; }

  private:
    void read_metadata() {
        if (std::exchange(metadata_seen_, true)) throw FormatError("__metadata__ stands twice");
        reader_.object([&](const std::string& key) {
            if (!metadata_.emplace(key, reader_.string()).second) throw FormatError("__metadata__: duplicate " + key);
        });
    }

    Entry read_entry(const std::string& name) {
        std::optional<DType> dtype;
        std::optional<std::vector<std::int64_t>> shape;
        std::optional<std::vector<std::uint64_t>> offsets;
        const auto once = [&](const auto& field, std::string_view key) {
            if (field) throw FormatError(message("tensor ", name, ": ", key, " stands twice"));
        };
        reader_.object([&](const std::string& key) {
            if (key == "dtype") {
                once(dtype, key);
                dtype = dtype_of(name, reader_.string());
            } else if (key == "shape") {
                once(shape, key);
                shape.emplace();
                reader_.array([&] { shape->push_back(read_extent(name, shape->size())); });
            } else if (key == "data_offsets") {
                once(offsets, key);
                offsets.emplace();
                reader_.array([&] {
                    if (offsets->size() == 2)
                        throw FormatError(message("tensor ", name, ": more than two data_offsets"));
                    offsets->push_back(reader_.unsigned_integer());
                });
            } else {
                reader_.skip();
            }
        });
        if (!dtype || !shape || !offsets || offsets->size() != 2) {
            throw FormatError(message("tensor ", name, ": dtype, shape and two data_offsets are needed"));
        }
        return {name, *dtype, Dims(*shape), offsets->front(), offsets->back()};
    }

    std::int64_t read_extent(const std::string& name, std::size_t rank) {
        if (rank == Dims::max_rank) throw FormatError(message("tensor ", name, ": its rank is above ", Dims::max_rank));
        const std::uint64_t extent = reader_.unsigned_integer();
        if (extent > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
            throw FormatError(message("tensor ", name, ": a dimension of ", extent));
        }
        return static_cast<std::int64_t>(extent);
    }

    JsonReader reader_;
    std::vector<Entry> entries_;
    std::map<std::string, std::string> metadata_;
    bool metadata_seen_ = false;
};

/// Every tensor fills its range, and the ranges fill the data from beginning to end: no overlap, no hole.
void check_layout(std::vector<Entry>& entries, std::uint64_t data_bytes) {
    std::sort(entries.begin(), entries.end(),
              [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
    std::uint64_t position = 0;
    for (const Entry& entry : entries) {
        if (entry.end < entry.begin || entry.end > data_bytes) {
            throw FormatError(message("tensor ", entry.name, ": its bytes [", entry.begin, ", ", entry.end,
                                      ") lie outside the data of ", data_bytes, " bytes"));
        }
        if (entry.begin != position) {
            throw FormatError(message("tensor ", entry.name, ": its bytes begin at ", entry.begin,
                                      entry.begin < position ? ", inside another tensor's" : ", after a hole",
                                      ", not at ", position));
        }
        const std::size_t needed = contiguous_bytes(entry.dtype, entry.shape);
        if (needed != entry.end - entry.begin) {
            throw FormatError(message("tensor ", entry.name, ": ", entry.dtype, entry.shape, " takes ", needed,
                                      " bytes, not ", entry.end - entry.begin));
        }
        position = entry.end;
    }
    if (position != data_bytes) {
        throw FormatError(message("the tensors end at byte ", position, " of the data, which has ", data_bytes));
    }
}

std::string_view header_text(const MappedFile& file) {
    if (file.bytes() < length_bytes)
        throw FormatError(message("truncated: the file has only ", file.bytes(), " bytes"));
    std::uint64_t length = 0;
    for (std::uint64_t i = 0; i < length_bytes; ++i) {
        length |= static_cast<std::uint64_t>(std::to_integer<std::uint8_t>(file.data()[i])) << (8 * i);
    }
    if (length > largest_header) throw FormatError(message("the header is too large: ", length, " bytes"));
    if (length > file.bytes() - length_bytes) {
        throw FormatError(message("truncated: the header of ", length, " bytes lies beyond the file's ", file.bytes()));
    }
    const auto* text = reinterpret_cast<const char*>(file.data() + length_bytes);
    if (length == 0 || text[0] != '{') throw FormatError("the header does not start with '{'");
    return {text, length};
}

/// A view of the file, or a copy where the elements are not at multiples of their size.
Tensor tensor_of(const std::shared_ptr<MappedFile>& file, const Entry& entry, std::size_t data_offset) {
    const std::size_t offset = data_offset + entry.begin;
    if (offset % size_of(entry.dtype) == 0) {
        return {file, entry.dtype, entry.shape, contiguous_strides(entry.shape), offset};
    }
    Tensor copy = Tensor::empty(entry.dtype, entry.shape);
    if (copy.bytes() > 0) std::memcpy(copy.bytes_data(), file->data() + offset, copy.bytes());
    return copy;
}

}  // namespace

Safetensors::Safetensors(const std::filesystem::path& path) : path_(path) {
    const std::shared_ptr<MappedFile> file = MappedFile::open(path);
    try {
        const std::string_view text = header_text(*file);
        Header header(text);
        const std::size_t data_offset = length_bytes + text.size();
        check_layout(header.entries(), file->bytes() - data_offset);
        for (const Entry& entry : header.entries()) {
            if (!tensors_.emplace(entry.name, tensor_of(file, entry, data_offset)).second) {
                throw FormatError(message("duplicate tensor ", entry.name));
            }
        }
        metadata_ = std::move(header.metadata());
    } catch (const FormatError& error) {
        throw FormatError(message(path.string(), ": ", error.what()));
    } catch (const InvalidArgument& error) {  // sizes beyond any memory
        throw FormatError(message(path.string(), ": ", error.what()));
    }
}

}  // namespace fermi
