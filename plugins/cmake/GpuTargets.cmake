# rainfusion_gpu_targets(<variable> <architecture>...)
#
# What nvcc makes of CMake's CUDA architectures: machine code (sm_80), PTX (compute_80), or both for
# an architecture without a suffix. The library tells by this list which GPUs it runs on, so that
# names whose meaning depends on the compiler or the machine (all, native) are refused.
function(rainfusion_gpu_targets variable)
  set(targets)
  foreach(architecture IN LISTS ARGN)
    if(NOT architecture MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
      message(FATAL_ERROR
        "CUDA architecture \"${architecture}\" is not a number: name compute capabilities, as in "
        "-DCMAKE_CUDA_ARCHITECTURES=80-real;90 (80-real: machine code, 80-virtual: PTX, 80: both), "
        "or build with `rainfusion-trt build-plugin`, which asks the GPUs of this machine")
    endif()
    if(NOT CMAKE_MATCH_2 STREQUAL "-virtual")
      list(APPEND targets "sm_${CMAKE_MATCH_1}")
    endif()
    if(NOT CMAKE_MATCH_2 STREQUAL "-real")
      list(APPEND targets "compute_${CMAKE_MATCH_1}")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES targets)
  set(${variable} ${targets} PARENT_SCOPE)
endfunction()
