# Finds TensorRT's C++ headers and makes the target tensorrt_headers. In this order:
#
# 1. -DTENSORRT_INCLUDE_DIR=<directory with NvInferRuntime.h>
# 2. TENSORRT_ROOT or TRT_ROOT, as a CMake or an environment variable
# 3. the system's include directories
# 4. the wheel kernel-lens 2.0.1, which ships NVIDIA's Apache-2.0 headers of TensorRT 10.14 and is
#    taken only if its headers have the known digest
#
# The plugin interfaces are the same in TensorRT 10, 11 and TensorRT for RTX, so that any of these
# headers serve all three.
#
# The digest is the SHA-256 of `sha256sum *.h` in that directory.
set(RAINFUSION_KERNEL_LENS_DIGEST
    6e461220758471697370e27c68948a815f122d108a2bcc7537a8b3bf96afa671)

function(_rainfusion_wheel_headers variable)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(NOT Python3_Interpreter_FOUND)
    return()
  endif()
  # Without importing the package: only its headers are wanted.
  execute_process(
    COMMAND
      "${Python3_EXECUTABLE}" -c
      "import importlib.util as u; s = u.find_spec('kernel_lens'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE package
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(directory "${package}/include/tensorrt")
  if(NOT package OR NOT EXISTS "${directory}/NvInferRuntime.h")
    return()
  endif()
  file(GLOB headers RELATIVE "${directory}" "${directory}/*.h")
  list(SORT headers COMPARE STRING)
  set(manifest "")
  foreach(header IN LISTS headers)
    file(SHA256 "${directory}/${header}" digest)
    string(APPEND manifest "${digest}  ${header}\n")
  endforeach()
  string(SHA256 digest "${manifest}")
  if(NOT digest STREQUAL RAINFUSION_KERNEL_LENS_DIGEST)
    message(WARNING "TensorRT headers in ${directory} are not those of kernel-lens 2.0.1 "
                    "(digest ${digest}); not using them")
    return()
  endif()
  set(${variable} "${directory}" PARENT_SCOPE)
endfunction()

set(_trt_source "TENSORRT_INCLUDE_DIR")
if(NOT TENSORRT_INCLUDE_DIR)
  set(_trt_source "TENSORRT_ROOT or TRT_ROOT")
  find_path(
    TENSORRT_INCLUDE_DIR NvInferRuntime.h
    PATHS "${TENSORRT_ROOT}" "${TRT_ROOT}" ENV TENSORRT_ROOT ENV TRT_ROOT
    PATH_SUFFIXES include include/${CMAKE_LIBRARY_ARCHITECTURE}
    NO_DEFAULT_PATH)
endif()
if(NOT TENSORRT_INCLUDE_DIR)
  set(_trt_source "the system")
  find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
            PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE} tensorrt)
endif()
if(NOT TENSORRT_INCLUDE_DIR)
  set(_trt_source "the wheel kernel-lens")
  _rainfusion_wheel_headers(_trt_wheel_headers)
  set(TENSORRT_INCLUDE_DIR "${_trt_wheel_headers}"
      CACHE PATH "Directory with NvInferRuntime.h" FORCE)
endif()
if(NOT EXISTS "${TENSORRT_INCLUDE_DIR}/NvInferRuntime.h")
  message(FATAL_ERROR "TensorRT headers not found: set -DTENSORRT_INCLUDE_DIR or TENSORRT_ROOT, or "
                      "`pip install --no-deps kernel-lens==2.0.1` into the Python that CMake finds")
endif()

file(STRINGS "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h" _trt_version_lines
     REGEX "#define (TRT|NV_TENSORRT)_(MAJOR|MINOR)(_ENTERPRISE|_RTX)? [0-9]+")
string(REGEX MATCHALL "[0-9]+" _trt_version "${_trt_version_lines}")
list(JOIN _trt_version "." _trt_version)
message(STATUS "TensorRT ${_trt_version} headers from ${_trt_source}: ${TENSORRT_INCLUDE_DIR}")

add_library(tensorrt_headers INTERFACE)
target_include_directories(tensorrt_headers SYSTEM INTERFACE "${TENSORRT_INCLUDE_DIR}"
                                                             ${CUDAToolkit_INCLUDE_DIRS})
