// Finds, opens and remembers backends.
#include "backend.h"

namespace fermi {

Program::~Program() = default;
Backend::~Backend() = default;

}  // namespace fermi
