# What the scripts that build ctests/consumer share.

# Runs a command; its output is shown, and is the reason if it fails.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGN}: ${result}\n${output}")
  endif()
  message(STATUS "${output}")
endfunction()

# The same; its output is a variable.
function(ask variable)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGN}: ${result}")
  endif()
  set(${variable} "${output}" PARENT_SCOPE)
endfunction()

# configure_consumer(build way options...): without building it.
function(configure_consumer build way)
  run("${CMAKE_COMMAND}" -S "${CONSUMER}" -B "${build}" -G "${GENERATOR}"
      "-DCMAKE_C_COMPILER=${CC}" "-DCMAKE_CXX_COMPILER=${CXX}" "-DCONSUMER_WAY=${way}"
      "-DCONSUMER_VERSION=${VERSION}" ${ARGN})
endfunction()

# Builds all four programs and runs them, with nothing said about where the library is.
function(build_consumer build)
  unset(ENV{LD_LIBRARY_PATH})
  run("${CMAKE_COMMAND}" --build "${build}")
  foreach(program consumer_c consumer_c_static consumer_cpp consumer_cpp_static)
    run("${build}/${program}")
  endforeach()
endfunction()

# libmlxd.so -> libmlxd.so.0 -> libmlxd.so.0.1.0
function(check_links folder)
  string(REGEX REPLACE "\\..*" "" major "${VERSION}")
  foreach(link libmlxd.so:libmlxd.so.${major} libmlxd.so.${major}:libmlxd.so.${VERSION})
    string(REPLACE ":" ";" link "${link}")
    list(GET link 0 from)
    list(GET link 1 to)
    if(NOT IS_SYMLINK "${folder}/${from}")
      message(FATAL_ERROR "${folder}/${from} should be a link")
    endif()
    file(READ_SYMLINK "${folder}/${from}" target)
    if(NOT target STREQUAL to)
      message(FATAL_ERROR "${folder}/${from} leads to ${target}, not to ${to}")
    endif()
  endforeach()
  if(IS_SYMLINK "${folder}/libmlxd.so.${VERSION}" OR NOT EXISTS "${folder}/libmlxd.so.${VERSION}")
    message(FATAL_ERROR "${folder}/libmlxd.so.${VERSION} should be a file")
  endif()
endfunction()
