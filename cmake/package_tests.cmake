# Label `package`: what users get beside the library itself. ctests/consumer is their project, built
# in every way in which it can have mlxd; Doxygen reads the headers.

set(package_dir "${PROJECT_BINARY_DIR}/package-tests")
set(consumer_options "-DCONSUMER=${ctests_dir}/consumer" "-DSOURCE=${PROJECT_SOURCE_DIR}"
    "-DGENERATOR=${CMAKE_GENERATOR}" "-DVERSION=${PROJECT_VERSION}" "-DCC=${CMAKE_C_COMPILER}"
    "-DCXX=${CMAKE_CXX_COMPILER}")

# add_package_test(name script options...)
function(add_package_test name script)
  add_test(NAME ${name}
    COMMAND "${CMAKE_COMMAND}" "-DSTAGE=${package_dir}/${name}" ${ARGN}
            -P "${PROJECT_SOURCE_DIR}/cmake/${script}.cmake")
  set_tests_properties(${name} PROPERTIES LABELS "package;quick" TIMEOUT 600)
endfunction()

if(MLXD_INSTALL AND NOT IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(install_options ${consumer_options} "-DBUILD=${PROJECT_BINARY_DIR}"
      "-DLIBDIR=${CMAKE_INSTALL_LIBDIR}" "-DINCLUDEDIR=${CMAKE_INSTALL_INCLUDEDIR}"
      "-DBINDIR=${CMAKE_INSTALL_BINDIR}")
  add_package_test(install check_install ${install_options})
  add_package_test(install_destdir check_install ${install_options} -DDESTDIR=ON)
  # Both write the install_manifest.txt of this build.
  set_tests_properties(install install_destdir PROPERTIES RESOURCE_LOCK install_manifest)
endif()

foreach(way add_subdirectory FetchContent)
  add_package_test(${way} check_subproject ${consumer_options} -DWAY=${way}
    "-DTARGET_DIR=${MLXD_TARGET_DIR}" "-DCARGO=${cargo}")
endforeach()

# Where doxygen is not installed the script says so, and the test counts as skipped.
add_package_test(doxygen check_doxygen "-DSOURCE=${PROJECT_SOURCE_DIR}")
set_tests_properties(doxygen PROPERTIES SKIP_REGULAR_EXPRESSION "doxygen is not installed")
