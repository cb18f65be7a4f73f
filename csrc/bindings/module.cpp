// fermi._C.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, module) { module.attr("__version__") = FERMI_VERSION; }
