# What `cmake --install` puts where, for find_package and pkg-config too. Nothing that is installed
# names the prefix, so that the whole may be moved.

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/mlxd")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/mlxdConfig.cmake.in" mlxdConfig.cmake
  INSTALL_DESTINATION "${package_dir}" PATH_VARS CMAKE_INSTALL_LIBDIR CMAKE_INSTALL_INCLUDEDIR)
# Before 1.0 a new minor version may change the interface.
write_basic_package_version_file(mlxdConfigVersion.cmake COMPATIBILITY SameMinorVersion)

list(TRANSFORM static_needs PREPEND "-l" OUTPUT_VARIABLE static_flags)
list(JOIN static_flags " " static_flags)
# From mlxd.pc, which lies in libdir/pkgconfig. Folders that are set as absolute paths stay so.
set(pc_libdir "\${pcfiledir}/..")
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(pc_prefix "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH pc_to_prefix "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" /prefix)
  string(REGEX REPLACE "/$" "" pc_to_prefix "${pc_to_prefix}")
  set(pc_prefix "\${pcfiledir}/${pc_to_prefix}")
endif()
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
else()
  set(pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
configure_file("${PROJECT_SOURCE_DIR}/cmake/mlxd.pc.in" mlxd.pc @ONLY)

file(GLOB headers CONFIGURE_DEPENDS include/*.h include/*.hpp)
install(FILES ${headers} DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(PROGRAMS "${lib_dir}/${lib_file}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${lib_dir}/${lib_soname}" "${lib_dir}/${lib_link}" "${cargo_out}/libmlxd.a"
        DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(PROGRAMS "${launch}" "${bench}" "${inspect}" DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(FILES "${PROJECT_BINARY_DIR}/mlxdConfig.cmake"
              "${PROJECT_BINARY_DIR}/mlxdConfigVersion.cmake" DESTINATION "${package_dir}")
install(FILES "${PROJECT_BINARY_DIR}/mlxd.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
