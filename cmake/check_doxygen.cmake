# cmake -DSOURCE= -DSTAGE= -P check_doxygen.cmake
# docs/Doxyfile makes its pages without a warning.

cmake_minimum_required(VERSION 3.18)

find_program(doxygen doxygen)
if(NOT doxygen)
  message(STATUS "doxygen is not installed")
  return()
endif()
file(REMOVE_RECURSE "${STAGE}")
file(MAKE_DIRECTORY "${STAGE}")
file(WRITE "${STAGE}/Doxyfile" "@INCLUDE = docs/Doxyfile\nOUTPUT_DIRECTORY = \"${STAGE}\"\n")
execute_process(COMMAND "${doxygen}" "${STAGE}/Doxyfile" WORKING_DIRECTORY "${SOURCE}"
                RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE warnings)
if(NOT result EQUAL 0 OR NOT warnings STREQUAL "")
  message(FATAL_ERROR "doxygen: ${result}\n${warnings}")
endif()
foreach(page mlxd_8h.html mlxd_8hpp.html)
  if(NOT EXISTS "${STAGE}/doxygen/${page}")
    message(FATAL_ERROR "doxygen made no ${page}")
  endif()
endforeach()
