// fermi._C: the core as a Python module. Its contract is python/fermi/_C.pyi.
#include "bindings.h"

PYBIND11_MODULE(_C, module) {
    using namespace fermi::python;
    module.doc() = "The C++ core: tensors, weights, ops, recordings, backends, checkpoints.";
    module.attr("__version__") = FERMI_VERSION;
    bind_errors(module);
    bind_tensor(module);
    bind_weight(module);
    bind_backend(module);
    bind_recording(module);
    bind_safetensors(module);
    bind_ops(module);
}
