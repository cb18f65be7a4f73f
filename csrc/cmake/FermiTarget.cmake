# fermi_target(name): the warnings and sanitizers of our own code. fermi_backend(name): a backend library.

if(FERMI_SANITIZE)
    add_compile_options(-fsanitize=${FERMI_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    add_link_options(-fsanitize=${FERMI_SANITIZE})
endif()

function(fermi_target target)
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion
        -Wnon-virtual-dtor -Woverloaded-virtual -Wold-style-cast -Wimplicit-fallthrough)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
        target_compile_options(${target} PRIVATE -Wno-restrict)  # false alarms on std::string (GCC bug 105651)
    endif()
    if(FERMI_WERROR)
        target_compile_options(${target} PRIVATE -Werror)
    endif()
endfunction()

# Makes the module library `target` a backend: placed in the folder where the core looks for backends, exporting
# nothing but `fermi_backend`, finding libfermi one folder up.
function(fermi_backend target)
    fermi_target(${target})
    target_link_libraries(${target} PRIVATE fermi_core)
    set_target_properties(${target} PROPERTIES
        PREFIX "lib"
        LIBRARY_OUTPUT_DIRECTORY "${FERMI_BACKEND_DIR}"
        BUILD_WITH_INSTALL_RPATH ON
        INSTALL_RPATH "${FERMI_ORIGIN}/..")
    install(TARGETS ${target} LIBRARY DESTINATION fermi/backends)
endfunction()
