// A file's pages as storage.
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

#include "export.h"
#include "storage.h"

namespace fermi {

/// A regular file mapped read-only, whole. Its pages are shared with the page cache: they cost no memory of their own.
/// (A file that is truncated while mapped faults when read, like any mapping: checkpoints are replaced, not rewritten.)
class FERMI_API MappedFile final : public Storage {
  public:
    /// Throws std::filesystem::filesystem_error when the file cannot be opened or is not a regular file.
    static std::shared_ptr<MappedFile> open(const std::filesystem::path& path);
    ~MappedFile() override;

    bool writable() const override { return false; }

  private:
    using Storage::Storage;
};

}  // namespace fermi
