// Visibility of the core library's symbols: backends and bindings are separate shared libraries that link against it.
#pragma once

#define FERMI_API __attribute__((visibility("default")))
