# cmake -DWAY= -DSTAGE= -DCONSUMER= -DGENERATOR= -DVERSION= -DCC= -DCXX= -DSOURCE= -DTARGET_DIR=
#       -DCARGO= -P check_subproject.cmake
# Builds programs that have mlxd as a part of their own project: by add_subdirectory or FetchContent.

cmake_minimum_required(VERSION 3.18)
include("${CMAKE_CURRENT_LIST_DIR}/consumer.cmake")

file(REMOVE_RECURSE "${STAGE}")
set(build "${STAGE}/build")
set(options "-DCONSUMER_SOURCE=${SOURCE}" "-DMLXD_CARGO=${CARGO}" "-DFETCHCONTENT_SOURCE_DIR_MLXD=${SOURCE}"
    -DFETCHCONTENT_FULLY_DISCONNECTED=ON)

# Where cargo would build if nobody said: not among the sources.
unset(ENV{CARGO_TARGET_DIR})
configure_consumer("${build}" ${WAY} ${options})
file(STRINGS "${build}/CMakeCache.txt" target_dir REGEX "^MLXD_TARGET_DIR:")
string(FIND "${target_dir}" "=${build}/" inside)
if(inside EQUAL -1)
  message(FATAL_ERROR "cargo would build outside ${build}: ${target_dir}")
endif()

# Where it has built already.
configure_consumer("${build}" ${WAY} ${options} "-DMLXD_TARGET_DIR=${TARGET_DIR}")
build_consumer("${build}")
file(GLOB_RECURSE library "${build}/libmlxd.so")
list(GET library 0 library)
get_filename_component(folder "${library}" DIRECTORY)
check_links("${folder}")

# The host's installation is the host's alone, until it asks for more.
function(check_installed pattern wanted)
  file(REMOVE_RECURSE "${STAGE}/prefix")
  run("${CMAKE_COMMAND}" --install "${build}" --prefix "${STAGE}/prefix")
  file(GLOB_RECURSE found RELATIVE "${STAGE}/prefix" "${STAGE}/prefix/*")
  list(FILTER found INCLUDE REGEX "${pattern}")
  if(wanted AND NOT found)
    message(FATAL_ERROR "MLXD_INSTALL installs no ${pattern}")
  elseif(found AND NOT wanted)
    message(FATAL_ERROR "installed without being asked for: ${found}")
  endif()
endfunction()

unset(ENV{DESTDIR})
check_installed("mlxd" FALSE)
configure_consumer("${build}" ${WAY} -DMLXD_INSTALL=ON)
check_installed("mlxdConfig.cmake" TRUE)
