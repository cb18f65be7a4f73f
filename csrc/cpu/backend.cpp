// The CPU backend's entry. Kernels come with it.
#include "backend.h"

namespace {
bool usable() { return true; }
fermi::Backend* create(const fermi::BackendOptions&) {
    throw fermi::BackendError("cpu: this library has no kernels yet");
}
}  // namespace

extern "C" FERMI_API const fermi::BackendEntry fermi_backend{fermi::backend_interface_version, usable, create};
