// Finds, opens and remembers backends: shared libraries in the folder `backends` beside libfermi.
#include "backend.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

#include "error.h"

namespace fermi {
namespace {

/// CPU instruction sets, best first.
constexpr std::array<std::string_view, 4> known_architectures{"avx512", "avx2", "neon", "portable"};

/// The folder that this very library was loaded from, plus "backends".
std::filesystem::path default_folder() {
    static const int here = 0;
    Dl_info info{};
    if (dladdr(&here, &info) == 0 || info.dli_fname == nullptr) {
        throw BackendError("cannot tell from where libfermi was loaded");
    }
    return std::filesystem::absolute(info.dli_fname).parent_path() / "backends";
}

/// Loads the library once per process (the loader counts) and never unloads it: backends may outlive everything here.
const BackendEntry& load(const std::filesystem::path& library) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* reason = dlerror();
        throw BackendError(
            message("cannot load ", library.string(), ": ", reason != nullptr ? reason : "unknown error"));
    }
    const auto* entry = static_cast<const BackendEntry*>(dlsym(handle, "fermi_backend"));
    if (entry == nullptr) throw BackendError(message(library.string(), " is not a backend of fermi"));
    if (entry->interface_version != backend_interface_version) {
        throw BackendError(message(library.string(), " was built for interface ", entry->interface_version,
                                   ", this is interface ", backend_interface_version));
    }
    return *entry;
}

std::filesystem::path cpu_library(const std::filesystem::path& folder, std::string_view architecture) {
    return folder / message("libfermi_cpu_", architecture, ".so");
}

std::filesystem::path device_library(const std::filesystem::path& folder, DeviceType type) {
    return folder / (type == DeviceType::cuda ? "libfermi_cuda.so" : "libfermi_metal.so");
}

std::filesystem::path or_default(const std::filesystem::path& folder) {
    return folder.empty() ? default_folder() : folder;
}

template <class Names>
std::string joined(const Names& names) {
    std::string text;
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + std::string(name);
    return text.empty() ? "none" : text;
}

std::shared_ptr<Backend> create(const std::filesystem::path& library, const BackendOptions& options) {
    return std::shared_ptr<Backend>(load(library).create(options));
}

std::shared_ptr<Backend> open_cpu(const BackendOptions& options, const std::string& architecture,
                                  const std::filesystem::path& folder) {
    const std::vector<std::string> usable = cpu_architectures(folder);
    const bool automatic = architecture.empty() || architecture == "auto";
    const auto found = automatic ? usable.begin() : std::find(usable.begin(), usable.end(), architecture);
    if (found == usable.end()) {
        throw BackendError(message("cpu: the instruction set ", automatic ? "auto" : architecture,
                                   " is not available; usable here: ", joined(usable), " (of those in ",
                                   folder.string(), ")"));
    }
    return create(cpu_library(folder, *found), options);
}

thread_local std::vector<std::shared_ptr<Backend>> scopes;

/// The backend of eager ops outside any scope: one per device, opened at first use and kept to the end of the process
/// (its threads must not be joined while the process tears itself down).
std::shared_ptr<Backend> default_backend(const Device& device) {
    static std::mutex mutex;
    static auto& opened = *new std::map<std::pair<DeviceType, int>, std::shared_ptr<Backend>>;
    const std::lock_guard lock(mutex);
    std::shared_ptr<Backend>& backend = opened[{device.type, device.index}];
    if (backend == nullptr) backend = open_backend(device);
    return backend;
}

}  // namespace

Program::~Program() = default;
Backend::~Backend() = default;

std::vector<std::string> cpu_architectures(const std::filesystem::path& given) {
    const std::filesystem::path folder = or_default(given);
    std::vector<std::string> usable;
    for (const std::string_view architecture : known_architectures) {
        const auto library = cpu_library(folder, architecture);
        std::error_code ignored;
        if (std::filesystem::is_regular_file(library, ignored) && load(library).usable()) {
            usable.emplace_back(architecture);
        }
    }
    return usable;
}

std::vector<std::string> devices(const std::filesystem::path& given) {
    const std::filesystem::path folder = or_default(given);
    std::vector<std::string> found;
    if (!cpu_architectures(folder).empty()) found.emplace_back("cpu");
    for (const DeviceType type : {DeviceType::cuda, DeviceType::metal}) {
        const auto library = device_library(folder, type);
        std::error_code ignored;
        if (!std::filesystem::is_regular_file(library, ignored)) continue;
        try {
            if (load(library).usable()) found.push_back(message(Device{type, 0}));
        } catch (const BackendError&) {
            continue;  // the machine lacks the driver that the library needs: the device is not there
        }
    }
    return found;
}

std::shared_ptr<Backend> open_backend(const Device& device, const BackendOptions& options,
                                      const std::string& architecture, const std::filesystem::path& given) {
    require(options.threads >= 0, "threads must not be negative, not ", options.threads);
    const std::filesystem::path folder = or_default(given);
    BackendOptions completed = options;
    completed.index = device.index;
    if (device.type == DeviceType::cpu) return open_cpu(completed, architecture, folder);
    require(architecture.empty() || architecture == "auto", device, ": an instruction set is for the CPU only");
    const auto library = device_library(folder, device.type);
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(library, ignored)) {
        throw BackendError(message(device, ": there is no such backend; available: ", joined(devices(folder))));
    }
    if (!load(library).usable()) throw BackendError(message(device, ": this machine has no such device"));
    return create(library, completed);
}

Backend& current_backend(const Device& device) {
    for (auto scope = scopes.rbegin(); scope != scopes.rend(); ++scope) {
        if ((*scope)->device() == device) return **scope;
    }
    return *default_backend(device);
}

BackendScope::BackendScope(std::shared_ptr<Backend> backend) : backend_(std::move(backend)) {
    require(backend_ != nullptr, "backend: there is none");
    scopes.push_back(backend_);
}

BackendScope::~BackendScope() {
    const auto last = std::find(scopes.rbegin(), scopes.rend(), backend_);
    if (last != scopes.rend()) scopes.erase(std::next(last).base());
}

}  // namespace fermi
