# The C tests. Labels: `ring` (operations over the ring), `contract` (start-up and argument errors),
# `faults` (failures that a test brings about), `shm`, `tcp` and `mixed` (see add_ranks), `mpi`, `rdma`, and
# `nccl` and `gpu` (see mpi_tests.cmake, rdma_tests.cmake and nccl_tests.cmake), `quick` (up to three ranks),
# `waits` (see the end), `long-memory` (needs 6 GiB of memory, 11 with MLXD_TEST_LONG; skips itself where there is less).

set(ctests_dir "${PROJECT_SOURCE_DIR}/ctests")

function(add_test_program name library)
  add_executable(${name} "${ctests_dir}/${ARGV2}")
  set_target_properties(${name} PROPERTIES
    C_STANDARD 11 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF
    CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/ctests")
  target_compile_options(${name} PRIVATE ${warnings})
  target_link_libraries(${name} PRIVATE ${library} Threads::Threads m)
endfunction()

# The host of each rank, where a number of ranks is to be on several.
set(hosts_of_3 aab)
set(hosts_of_4 aaba)
set(hosts_of_5 aabbc)
set(hosts_of_8 aaabbbbc)

# add_ranks(program label transport connections ranks...): one test for each number of ranks, under
# mlxd-launch, with so many connections between two ranks. Transports: `shm`, all in shared memory;
# `tcp`; `mixed`, as if on several hosts: shared memory within each, TCP between them.
function(add_ranks program label transport connections)
  foreach(ranks IN LISTS ARGN)
    set(test ${program}_${ranks})
    set(labels ${label} ${transport})
    set(setting ${transport})
    set(on_hosts)
    if(transport STREQUAL mixed)
      set(setting auto)
      set(on_hosts "${ctests_dir}/on_hosts.sh" ${hosts_of_${ranks}})
    endif()
    if(NOT transport STREQUAL shm)
      string(APPEND test _${transport})
    endif()
    if(connections GREATER 1)
      string(APPEND test _by_${connections})
    endif()
    set(processors 1)
    if(ranks GREATER 3)
      set(processors 2)
    else()
      list(APPEND labels quick)
    endif()
    add_test(NAME ${test} COMMAND "${launch}" -n ${ranks} --connections-per-ip ${connections}
                                  -- ${on_hosts} $<TARGET_FILE:${program}>)
    set_tests_properties(${test} PROPERTIES LABELS "${labels}" TIMEOUT 300
      PROCESSORS ${processors} ENVIRONMENT MLXD_TRANSPORT=${setting})
  endforeach()
endfunction()

# add_rank_program(program): for add_ranks.
function(add_rank_program program)
  set(source ${program}.c)
  if(EXISTS "${ctests_dir}/${program}.cpp")
    set(source ${program}.cpp)
  endif()
  add_test_program(${program} mlxd::mlxd ${source})
endfunction()

foreach(matrix matrix_reduce matrix_move matrix_p2p)
  add_rank_program(${matrix})
  add_ranks(${matrix} ring shm 1 1 2 3 4 5 7 8 13 16)
  add_ranks(${matrix} ring tcp 1 2 3 4 7 8)
  add_ranks(${matrix} ring mixed 1 3 4 5 8)
  foreach(connections 2 4)
    add_ranks(${matrix} ring tcp ${connections} 3)
    add_ranks(${matrix} ring mixed ${connections} 3)
  endforeach()
endforeach()
add_ranks(matrix_p2p ring shm 2 3)
add_ranks(matrix_p2p ring shm 4 3)
foreach(large large edges)
  add_rank_program(${large})
  add_ranks(${large} ring shm 1 2 3 4 7)
  add_ranks(${large} ring tcp 1 4)
  add_ranks(${large} ring tcp 2 3)
  add_ranks(${large} ring tcp 4 2)
  add_ranks(${large} ring mixed 1 4 5)
  add_ranks(${large} ring mixed 2 3)
endforeach()
add_ranks(large ring shm 4 2)
add_ranks(large ring tcp 2 7)
foreach(program special_values groups concurrency)
  add_rank_program(${program})
  add_ranks(${program} ring shm 1 1 2 3 4 5 8)
  add_ranks(${program} ring tcp 1 2 3 4 8)
  add_ranks(${program} ring mixed 1 3 4 5 8)
endforeach()
add_rank_program(hpp)
add_ranks(hpp ring shm 1 1 2 3 4)
add_ranks(hpp ring tcp 1 2 3)
add_ranks(hpp ring mixed 1 3 4)
add_rank_program(idle)
add_ranks(idle ring shm 1 2 4)
add_ranks(idle ring tcp 1 4)
add_ranks(idle ring mixed 1 4)
set_tests_properties(idle_4 idle_4_tcp idle_4_mixed PROPERTIES PROCESSORS 1)
add_rank_program(arguments)
add_ranks(arguments contract shm 1 1 2 3 4 5 8)
add_ranks(arguments contract tcp 1 3)
add_rank_program(restart)
add_ranks(restart contract shm 1 1 2 3 4 5 8)
add_ranks(restart contract tcp 1 2 4)
add_ranks(restart contract mixed 1 3 8)
add_rank_program(failures)
add_ranks(failures faults shm 1 1 2 3 4 5 8)
add_ranks(failures faults tcp 1 2 4)
add_ranks(failures faults mixed 1 3 4)
add_rank_program(mismatch)
add_ranks(mismatch faults shm 1 2 3 4)
add_ranks(mismatch faults tcp 1 2 3 4)
add_ranks(mismatch faults mixed 1 3 4)

# Messages of more than 2 GiB.
add_test_program(huge mlxd::mlxd huge.c)
add_test(NAME huge_2 COMMAND "${launch}" -n 2 -- $<TARGET_FILE:huge>)
set_tests_properties(huge_2 PROPERTIES
  LABELS long-memory TIMEOUT 300 PROCESSORS 2 SKIP_RETURN_CODE 77)

# add_lone_test(program label): starts what processes it needs by itself.
function(add_lone_test program label)
  add_test_program(${program} mlxd::mlxd ${program}.c)
  add_test(NAME ${program} COMMAND ${program})
  set_tests_properties(${program} PROPERTIES LABELS "${label};quick" TIMEOUT 200 PROCESSORS 2)
endfunction()

add_lone_test(contract contract)
add_lone_test(startup contract)
add_lone_test(hosts contract)
add_lone_test(misconfigured contract)
add_lone_test(strangers faults)
add_lone_test(killed faults)

add_test_program(silent_names mlxd::mlxd silent_names.c)
add_test(NAME silent_names
  COMMAND "${ctests_dir}/silent_names.sh" $<TARGET_FILE:silent_names>)
set_tests_properties(silent_names PROPERTIES
  LABELS "faults;quick" TIMEOUT 200 SKIP_RETURN_CODE 77)

# Most of its time it waits.
add_test_program(peer_lost mlxd::mlxd peer_lost.c)
foreach(transport shm tcp mixed)
  add_test(NAME peer_lost_${transport} COMMAND peer_lost ${transport})
  set_tests_properties(peer_lost_${transport} PROPERTIES
    LABELS "faults;${transport};quick" TIMEOUT 200)
endforeach()

add_test_program(contract_static mlxd::mlxd-static contract.c)
add_test(NAME contract_static COMMAND contract_static)
set_tests_properties(contract_static PROPERTIES LABELS "contract;quick" TIMEOUT 200)

if(MLXD_BUILD_EXAMPLES AND TARGET train_digits)
  add_test(NAME train_digits
    COMMAND "${ctests_dir}/train_digits.sh" "${launch}" $<TARGET_FILE:train_digits>
            "${PROJECT_SOURCE_DIR}/examples/data/digits.csv.gz")
  set_tests_properties(train_digits PROPERTIES LABELS ring TIMEOUT 300 PROCESSORS 2)
endif()

# The header by itself, twice, in every version of both languages.
function(add_header_test name compiler standard source)
  add_test(NAME header_${name}
    COMMAND "${compiler}" -std=${standard} ${warnings} -pedantic-errors -fsyntax-only
            "-I${PROJECT_SOURCE_DIR}/include" "${ctests_dir}/${source}")
  set_tests_properties(header_${name} PROPERTIES LABELS "contract;quick" TIMEOUT 60)
endfunction()

foreach(standard 99 11 17)
  add_header_test(c${standard} "${CMAKE_C_COMPILER}" c${standard} header.c)
endforeach()
foreach(standard 11 17 20)
  add_header_test(cxx${standard} "${CMAKE_CXX_COMPILER}" c++${standard} header.cpp)
endforeach()

# The C++ layer: alone, in every version that has what it needs, with more warnings than elsewhere;
# and the mistakes that it refuses to compile, each with its reason.
set(hpp_check "${CMAKE_CXX_COMPILER}" ${warnings} -Wconversion -Wshadow -fsyntax-only
              "-I${PROJECT_SOURCE_DIR}/include" "${ctests_dir}/hpp_refused.cpp")
foreach(standard 17 20 23)
  if(cxx_std_${standard} IN_LIST CMAKE_CXX_COMPILE_FEATURES)
    add_test(NAME header_hpp${standard}
      COMMAND ${hpp_check} ${CMAKE_CXX${standard}_STANDARD_COMPILE_OPTION})
    set_tests_properties(header_hpp${standard} PROPERTIES LABELS "contract;quick" TIMEOUT 60)
  endif()
endforeach()
set(refused 0)
foreach(reason "std::vector<bool> holds bits" "no dtype of mlxd.h" "the output is const"
               "elements of different types" "deleted.*init" "deleted.*Group")
  math(EXPR refused "${refused} + 1")
  add_test(NAME hpp_refused_${refused} COMMAND ${hpp_check} -std=c++17 -DREFUSED=${refused})
  set_tests_properties(hpp_refused_${refused} PROPERTIES
    PASS_REGULAR_EXPRESSION "error: [^\n]*${reason}" LABELS "contract;quick" TIMEOUT 60)
endforeach()

# The library exports what the header declares, and needs nothing but libc.
add_test(NAME exports
  COMMAND "${CMAKE_COMMAND}" "-DLIBRARY=${lib_dir}/${lib_file}"
          "-DHEADER=${PROJECT_SOURCE_DIR}/include/mlxd.h" "-DSONAME=${lib_soname}"
          -P "${PROJECT_SOURCE_DIR}/cmake/check_exports.cmake")
set_tests_properties(exports PROPERTIES LABELS "contract;quick" TIMEOUT 60)

include(cmake/mpi_tests.cmake)
include(cmake/rdma_tests.cmake)
include(cmake/nccl_tests.cmake)
include(cmake/package_tests.cmake)

# What waits for limits, dead ranks and the like most of its time has the label `waits`: many of those at
# once take no more time than one.
get_property(waiting DIRECTORY PROPERTY TESTS)
list(FILTER waiting INCLUDE REGEX
     "^(peer_lost|idle_|hosts$|strangers$|mpi_waits_|nccl_(error|lost|start|process|refused)_)")
foreach(test IN LISTS waiting)
  set_property(TEST ${test} APPEND PROPERTY LABELS waits)
endforeach()
