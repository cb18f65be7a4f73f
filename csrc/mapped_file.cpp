// open, fstat, mmap, close.
#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace fermi {
namespace {

class Descriptor {
  public:
    explicit Descriptor(int value) : value_(value) {}
    ~Descriptor() {
        if (value_ >= 0) ::close(value_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const { return value_; }

  private:
    int value_;
};

[[noreturn]] void fail(const std::filesystem::path& path, int error) {
    throw std::filesystem::filesystem_error("cannot map", path, std::error_code(error, std::generic_category()));
}

}  // namespace

std::shared_ptr<MappedFile> MappedFile::open(const std::filesystem::path& path) {
    // Not blocking: opening a named pipe must fail, not wait for a writer.
    const Descriptor descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (descriptor.get() < 0) fail(path, errno);
    struct stat status{};
    if (fstat(descriptor.get(), &status) != 0) fail(path, errno);
    if (S_ISDIR(status.st_mode)) fail(path, EISDIR);
    if (!S_ISREG(status.st_mode)) fail(path, EINVAL);
    const auto bytes = static_cast<std::size_t>(status.st_size);
    void* address = nullptr;
    if (bytes > 0) {
        address = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, descriptor.get(), 0);
        if (address == MAP_FAILED) fail(path, errno);
#if defined(__linux__)
        // A hint: what is not in the page cache yet is read in huge pages and mapped as such, where the file system can
        // (ext4 and XFS in recent kernels). Weights are then read as fast as memory of our own, not a fifth slower.
        madvise(address, bytes, MADV_HUGEPAGE);
#endif
    }
    try {
        return std::shared_ptr<MappedFile>(new MappedFile(static_cast<std::byte*>(address), bytes, Device{}));
    } catch (...) {
        if (address != nullptr) munmap(address, bytes);
        throw;
    }
}

MappedFile::~MappedFile() {
    if (data() != nullptr) munmap(data(), bytes());
}

}  // namespace fermi
