#include <cstring>
#include <utility>

#include "cpu/cpu_backend.h"
#include "cpu/memory_info.h"
#include "cpu/program.h"
#include "error.h"

#define FERMI_STRING(x) #x
#define FERMI_EXPANDED_STRING(x) FERMI_STRING(x)

namespace fermi::cpu::FERMI_ISA {

namespace {

constexpr int most_threads = 1024;

int threads_of(const BackendOptions& options) {
    if (options.index != 0) throw BackendError(message("cpu: no device ", options.index, "; there is only one"));
    if (options.threads < 0 || options.threads > most_threads) {
        throw BackendError(message("cpu: threads is ", options.threads, "; 0 to ", most_threads, " are possible"));
    }
    return options.threads == 0 ? physical_cores() : options.threads;
}

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options)
    : allocator_(std::make_shared<Allocator>()), pool_(std::make_shared<ThreadPool>(threads_of(options))) {}

std::string CpuBackend::architecture() const {
    return FERMI_EXPANDED_STRING(FERMI_ISA);
}

std::string CpuBackend::description() const {
    return message("cpu (", architecture(), ", ", threads(), threads() == 1 ? " thread)" : " threads)");
}

void CpuBackend::copy(const Tensor& destination, const Tensor& source) {
    if (source.bytes() != 0) std::memmove(destination.bytes_data(), source.bytes_data(), source.bytes());
}

void CpuBackend::launch(const Op& op) {
    ListProgram(std::make_shared<const std::vector<Op>>(1, op), pool_, allocator_, pool_->size()).run();
}

std::unique_ptr<Program> CpuBackend::lower(std::shared_ptr<const std::vector<Op>> ops) {
    const int lanes = lanes_for(*ops, pool_->size());
    return std::make_unique<ListProgram>(std::move(ops), pool_, allocator_, lanes);
}

MemoryInfo CpuBackend::memory() const {
    return memory_info();
}

Backend* create_backend(const BackendOptions& options) {
    return new CpuBackend(options);
}

}  // namespace fermi::cpu::FERMI_ISA
