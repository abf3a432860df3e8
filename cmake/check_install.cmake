# cmake -DBUILD= -DLIBDIR= -DCONSUMER= -DGENERATOR= -DVERSION= -DCC= -P check_install.cmake
# Installs below the build folder and builds a program against what was installed, by find_package
# (shared and static) and by pkg-config where that is there.

cmake_minimum_required(VERSION 3.18)

set(stage "${BUILD}/install-test")
set(prefix "${stage}/prefix")
file(REMOVE_RECURSE "${stage}")

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGN}: ${result}\n${output}")
  endif()
  message(STATUS "${output}")
endfunction()

run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${prefix}")
foreach(file include/mlxd.h include/mlxd.hpp bin/mlxd-launch bin/mlxd-bench
        ${LIBDIR}/libmlxd.a ${LIBDIR}/libmlxd.so ${LIBDIR}/libmlxd.so.${VERSION}
        ${LIBDIR}/pkgconfig/mlxd.pc)
  if(NOT EXISTS "${prefix}/${file}")
    message(SEND_ERROR "not installed: ${file}")
  endif()
endforeach()
if(NOT IS_SYMLINK "${prefix}/${LIBDIR}/libmlxd.so")
  message(SEND_ERROR "libmlxd.so should be a link")
endif()

run("${CMAKE_COMMAND}" -S "${CONSUMER}" -B "${stage}/build" -G "${GENERATOR}"
    "-DCMAKE_PREFIX_PATH=${prefix}" "-DCMAKE_C_COMPILER=${CC}" "-DMLXD_WANTED=${VERSION}")
run("${CMAKE_COMMAND}" --build "${stage}/build")
run("${stage}/build/consumer")
run("${stage}/build/consumer-static")

find_program(pkg_config NAMES pkg-config pkgconf)
if(pkg_config)
  set(ENV{PKG_CONFIG_PATH} "${prefix}/${LIBDIR}/pkgconfig")
  execute_process(COMMAND "${pkg_config}" --cflags --libs mlxd OUTPUT_VARIABLE flags
                  RESULT_VARIABLE result OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "pkg-config does not know mlxd")
  endif()
  separate_arguments(flags)
  run("${CC}" "${CONSUMER}/consumer.c" -o "${stage}/consumer-pc" ${flags}
      "-Wl,-rpath,${prefix}/${LIBDIR}")
  run("${stage}/consumer-pc")
endif()
