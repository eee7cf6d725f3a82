# rainfusion_source_hash(<variable> <directory>): first 16 hex digits of the SHA-256 over the names
# and contents of all sources under <directory>. rainfusion_trt/plugin/build.py computes the same.
function(rainfusion_source_hash variable directory)
  file(GLOB_RECURSE sources RELATIVE "${directory}" CONFIGURE_DEPENDS
       "${directory}/*.h" "${directory}/*.cuh" "${directory}/*.cc" "${directory}/*.cu"
       "${directory}/*.map" "${directory}/*.cmake" "${directory}/CMakeLists.txt")
  list(SORT sources COMPARE STRING)
  set(manifest "")
  foreach(source IN LISTS sources)
    file(SHA256 "${directory}/${source}" digest)
    string(APPEND manifest "${digest}  ${source}\n")
  endforeach()
  string(SHA256 hash "${manifest}")
  string(SUBSTRING "${hash}" 0 16 hash)
  set(${variable} "${hash}" PARENT_SCOPE)
endfunction()
