# The example programs: one source each, linked with the shared library.

file(GLOB example_sources CONFIGURE_DEPENDS examples/*.cpp)
foreach(source IN LISTS example_sources)
  get_filename_component(example "${source}" NAME_WE)
  add_executable(${example} "${source}")
  set_target_properties(${example} PROPERTIES
    CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
  target_compile_options(${example} PRIVATE ${warnings})
  target_link_libraries(${example} PRIVATE mlxd::mlxd Threads::Threads ${CMAKE_DL_LIBS})
endforeach()
