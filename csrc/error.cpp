// Anchors of the exception types.
#include "error.h"

namespace fermi {

Error::~Error() = default;
InvalidArgument::~InvalidArgument() = default;
OutOfMemory::~OutOfMemory() = default;
FormatError::~FormatError() = default;
BackendError::~BackendError() = default;

}  // namespace fermi
