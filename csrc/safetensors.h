// Safetensors files, memory-mapped: named tensors over the file's own pages (format:
// github.com/huggingface/safetensors).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "export.h"
#include "tensor.h"

namespace fermi {

/// One opened file. Tensors stay valid after it is gone: they share the mapping.
class FERMI_API Safetensors {
  public:
    /// Maps the file and checks its whole header. Throws filesystem_error if it cannot be opened, FormatError naming
    /// the file and what is wrong: truncated, header beyond the file or too large, not JSON, unknown dtype, shape and
    /// byte range that disagree, overlapping or out-of-bounds ranges, holes, overflowing sizes, duplicate names.
    explicit Safetensors(const std::filesystem::path& path);

    const std::map<std::string, Tensor>& tensors() const { return tensors_; }
    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
    std::map<std::string, Tensor> tensors_;
    std::map<std::string, std::string> metadata_;
};

}  // namespace fermi
