// The exceptions of the core; bindings turn each into its Python counterpart.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "export.h"

namespace fermi {

/// Base of everything the core throws on purpose.
class FERMI_API Error : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
    ~Error() override;  // here and below out of line: one type_info, in libfermi, whichever library throws or catches
};

/// A shape, dtype, device or value that an op or a tensor method cannot take (Python: ValueError).
class FERMI_API InvalidArgument : public Error {
  public:
    using Error::Error;
    ~InvalidArgument() override;
};

/// An allocation that could not be served (Python: MemoryError).
class FERMI_API OutOfMemory : public Error {
  public:
    using Error::Error;
    ~OutOfMemory() override;
};

/// A checkpoint file that breaks its format; the message starts with the file's name (Python: fermi._C.FormatError).
class FERMI_API FormatError : public Error {
  public:
    using Error::Error;
    ~FormatError() override;
};

/// A backend that cannot be loaded or that failed at run time (Python: RuntimeError).
class FERMI_API BackendError : public Error {
  public:
    using Error::Error;
    ~BackendError() override;
};

/// Joins its arguments with operator<<.
template <class... Parts>
std::string message(Parts&&... parts) {
    std::ostringstream stream;
    (stream << ... << std::forward<Parts>(parts));
    return stream.str();
}

/// Throws InvalidArgument with the joined parts unless `condition` holds. The first part names the op: "rms_norm: ".
template <class... Parts>
void require(bool condition, Parts&&... parts) {
    if (!condition) [[unlikely]] {
        throw InvalidArgument(message(std::forward<Parts>(parts)...));
    }
}

}  // namespace fermi
