# Element types (name in file names, C++ type) and head sizes that kernels are instantiated for:
# those of kernels/common/variants.h.
set(RAINFUSION_ELEMENTS fp16:__half bf16:__nv_bfloat16)
set(RAINFUSION_HEAD_SIZES 64 96 128)

# What all targets with device code are compiled with.
function(rainfusion_kernel_target target)
  target_include_directories(${target}
    PUBLIC ${CMAKE_CURRENT_SOURCE_DIR}/../include
    PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(${target} PUBLIC CUDA::cudart_static)
  target_compile_features(${target} PUBLIC cxx_std_17 PRIVATE cuda_std_17)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>)
  set_target_properties(${target} PROPERTIES
    POSITION_INDEPENDENT_CODE ON
    CUDA_RUNTIME_LIBRARY Static
    CUDA_VISIBILITY_PRESET hidden
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON)
endfunction()

# rainfusion_arch(<name> [ARCHITECTURE <architecture> WHEN <regex>] [SOURCES <source>...])
#
# Adds the kernels of kernels/<name> to the library: attention.cuh, window_attention.cuh and
# recall.cuh there define the launchers that launch.h declares in namespace rainfusion::<name>. They
# are instantiated for every element type and head size, two source files each, which compile side by
# side. SOURCES are compiled with them as they are.
#
# They are compiled for the architectures of the build, or for ARCHITECTURE alone (machine code) if
# one of those matches WHEN; otherwise they are left out. dispatch.cc, where the kernels have a row,
# is compiled with RAINFUSION_<NAME> if they are there, and `gpu_targets` of the caller gets
# ARCHITECTURE.
function(rainfusion_arch name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "ARCHITECTURE;WHEN" "SOURCES")
  set(architectures ${CMAKE_CUDA_ARCHITECTURES})
  if(arg_ARCHITECTURE)
    list(FILTER architectures INCLUDE REGEX "${arg_WHEN}")
    if(NOT architectures)
      return()
    endif()
    set(architectures ${arg_ARCHITECTURE}-real)
    list(APPEND gpu_targets sm_${arg_ARCHITECTURE})
    list(REMOVE_DUPLICATES gpu_targets)
    set(gpu_targets ${gpu_targets} PARENT_SCOPE)
  endif()

  set(sources ${arg_SOURCES})
  foreach(element IN LISTS RAINFUSION_ELEMENTS)
    string(REGEX MATCH "^(.*):(.*)$" matched ${element})
    set(element ${CMAKE_MATCH_2})
    foreach(head_size IN LISTS RAINFUSION_HEAD_SIZES)
      set(source ${CMAKE_CURRENT_BINARY_DIR}/${name}/${CMAKE_MATCH_1}_d${head_size}.cu)
      file(CONFIGURE OUTPUT ${source} @ONLY CONTENT
[[// Written by rainfusion_arch.
#include "@name@/attention.cuh"
#include "@name@/recall.cuh"

namespace rainfusion::@name@ {

template cudaError_t launch_attention<@element@, @head_size@>(
    const AttentionParams&, int, cudaStream_t);
template cudaError_t launch_recall<@element@, @head_size@>(const RecallParams&, cudaStream_t);

}  // namespace rainfusion::@name@
]])
      list(APPEND sources ${source})
      set(source ${CMAKE_CURRENT_BINARY_DIR}/${name}/${CMAKE_MATCH_1}_d${head_size}_windows.cu)
      file(CONFIGURE OUTPUT ${source} @ONLY CONTENT
[[// Written by rainfusion_arch.
#include "@name@/window_attention.cuh"

namespace rainfusion::@name@ {

template cudaError_t launch_window_attention<@element@, @head_size@>(
    const AttentionParams&, int, cudaStream_t);

}  // namespace rainfusion::@name@
]])
      list(APPEND sources ${source})
    endforeach()
  endforeach()

  rainfusion_kernel_objects(${name} "${architectures}" ${sources})
endfunction()

# rainfusion_eight_bit_arch(<name> <source>...)
#
# Adds 8-bit kernels that run from compute capability 8.9 on: for the architectures of the build,
# where an older one of 8.x becomes 89, machine code or PTX as it is. So whatever library runs on a
# GPU of 8.9 or newer has these kernels for it, which dispatch.cc takes for granted.
function(rainfusion_eight_bit_arch name)
  set(architectures ${CMAKE_CUDA_ARCHITECTURES})
  list(TRANSFORM architectures REPLACE "^8[0-8]" "89")
  rainfusion_gpu_targets(targets ${architectures})  # each once
  list(TRANSFORM targets REPLACE "^sm_(.*)$" "\\1-real")
  list(TRANSFORM targets REPLACE "^compute_(.*)$" "\\1-virtual")
  rainfusion_kernel_objects(${name} "${targets}" ${ARGN})
endfunction()

# rainfusion_kernel_objects(<name> <architectures> <source>...)
#
# Adds sources, compiled for architectures of their own, to the library. dispatch.cc is compiled with
# RAINFUSION_<NAME>.
function(rainfusion_kernel_objects name architectures)
  set(target rainfusion_kernels_${name})
  add_library(${target} OBJECT ${ARGN})
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
  rainfusion_kernel_target(${target})
  target_sources(rainfusion_kernels PRIVATE $<TARGET_OBJECTS:${target}>)
  string(TOUPPER RAINFUSION_${name} definition)
  set_property(SOURCE dispatch.cc APPEND PROPERTY COMPILE_DEFINITIONS ${definition})
endfunction()
