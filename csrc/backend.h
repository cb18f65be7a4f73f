// What a device must offer to run recordings; backends are shared libraries loaded at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device.h"
#include "export.h"
#include "ops.h"
#include "storage.h"

namespace fermi {

/// A recording made ready to run as often as wanted: a list for the thread pool, a CUDA graph, a Metal command buffer.
class FERMI_API Program {
  public:
    virtual ~Program();
    /// Runs every op in order. Not for two threads at once.
    virtual void run() = 0;
};

struct BackendOptions {
    int index = 0;    ///< which device of its kind
    int threads = 0;  ///< CPU: lanes of the pool; 0 = physical cores
};

struct MemoryInfo {
    std::uint64_t free = 0;   ///< bytes that can still be allocated
    std::uint64_t total = 0;  ///< bytes of the device
};

class FERMI_API Backend {
  public:
    virtual ~Backend();

    virtual Device device() const = 0;
    /// For banners and logs: "cpu (avx512, 2 threads)".
    virtual std::string description() const = 0;
    /// CPU: the instruction set, "portable", "avx2", "avx512", "neon"; else the chip's architecture.
    virtual std::string architecture() const = 0;
    virtual int threads() const { return 1; }

    /// At least 64-byte aligned memory, cached when released. Throws OutOfMemory.
    virtual std::shared_ptr<Storage> allocate(std::size_t bytes) = 0;
    /// Copies between contiguous tensors of equal size; one of them may be on the CPU.
    virtual void copy(const Tensor& destination, const Tensor& source) = 0;
    /// Runs one op now (eager).
    virtual void launch(const Op& op) = 0;
    virtual std::unique_ptr<Program> lower(std::shared_ptr<const std::vector<Op>> ops) = 0;
    /// Waits for what was launched; throws BackendError for what went wrong on the device.
    virtual void synchronize() = 0;
    virtual MemoryInfo memory() const = 0;
};

/// What each backend library exports as `fermi_backend`.
struct BackendEntry {
    std::uint32_t interface_version;            ///< backend_interface_version of the headers it was built with
    bool (*usable)();                           ///< this machine has the device and the instructions
    Backend* (*create)(const BackendOptions&);  ///< throws BackendError
};

inline constexpr std::uint32_t backend_interface_version = 1;

// Backends are looked for in the folder `backends` beside libfermi, unless another `folder` is given.

/// Opens a backend: "cpu" (the best instruction set found), or "cuda:0", "metal" where their library is present.
/// `architecture` forces a CPU instruction set ("" or "auto": the best); throws BackendError with what is available.
FERMI_API std::shared_ptr<Backend> open_backend(const Device& device, const BackendOptions& options = {},
                                                const std::string& architecture = "",
                                                const std::filesystem::path& folder = {});

/// The CPU instruction sets whose libraries are present and usable on this machine, best first.
FERMI_API std::vector<std::string> cpu_architectures(const std::filesystem::path& folder = {});
/// "cpu", and "cuda:0", "metal"… where usable.
FERMI_API std::vector<std::string> devices(const std::filesystem::path& folder = {});

/// The backend that eager ops of this thread run on: the innermost `BackendScope` of the device, else a default shared
/// by all threads.
FERMI_API Backend& current_backend(const Device& device);

/// Makes a backend current for eager ops on this thread. Created and destroyed on the same thread.
class FERMI_API BackendScope {
  public:
    explicit BackendScope(std::shared_ptr<Backend> backend);
    ~BackendScope();
    BackendScope(const BackendScope&) = delete;
    BackendScope& operator=(const BackendScope&) = delete;

  private:
    std::shared_ptr<Backend> backend_;
};

}  // namespace fermi
