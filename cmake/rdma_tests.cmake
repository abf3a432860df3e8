# The tests over RDMA, label `rdma`: the programs that the ring is tested with, on the devices of this
# machine (ctests/rdma_devices.sh) or those of scripts/rxe-vm; elsewhere those that need devices are
# skipped, unless MLXD_TEST_RDMA=required. All of it is to take minutes where the machine is emulated.

set(rdma_run "${ctests_dir}/rdma_run.sh" "${launch}")

# Most of the time is spent between processes that wait for each other: two tests at once go well.
function(set_rdma_properties test settings)
  set_tests_properties(${test} PROPERTIES LABELS rdma TIMEOUT 200 SKIP_RETURN_CODE 77
    ENVIRONMENT "${settings}")
endfunction()

# add_rdma_test(program topology ranks devices wires queue_pair settings arguments...)
function(add_rdma_test program topology ranks devices wires queue_pair settings)
  set(test rdma_${program}_${topology}_${ranks}_${queue_pair})
  if(devices GREATER 1)
    string(APPEND test _on_${devices})
  endif()
  if(wires GREATER 1)
    string(APPEND test _by_${wires})
  endif()
  add_test(NAME ${test} COMMAND ${rdma_run} ${topology} ${ranks} ${devices} ${wires}
                                $<TARGET_FILE:${program}> ${ARGN})
  set_rdma_properties(${test} "MLXD_RDMA_QP=${queue_pair};${settings}")
endfunction()

# Each of the eight ways to connect so many ranks runs another part of the matrix: together they run all of
# it on two and three ranks, half of it on four, an eighth on eight.
set(matrices matrix_reduce matrix_move matrix_p2p)
set(parts_on_2 8)
set(parts_on_3 8)
set(parts_on_4 16)
set(parts_on_8 64)
foreach(program IN LISTS matrices)
  foreach(ranks 2 3 4 8)
    set(part 0)
    foreach(topology mesh ring)
      foreach(queue_pair rc uc)
        foreach(devices 1 2)
          add_rdma_test(${program} ${topology} ${ranks} ${devices} 1 ${queue_pair}
            "MLXD_TEST_PART=${part}/${parts_on_${ranks}}")
          math(EXPR part "${part} + 1")
        endforeach()
      endforeach()
    endforeach()
  endforeach()
  # Several wires between two ranks.
  add_rdma_test(${program} ring 4 2 4 rc "MLXD_TEST_PART=8/16")
  add_rdma_test(${program} ring 3 2 2 uc "MLXD_TEST_PART=9/16")
  add_rdma_test(${program} mesh 3 2 3 uc "MLXD_TEST_PART=10/16")
endforeach()

foreach(program groups concurrency)
  add_rdma_test(${program} mesh 4 1 1 rc "")
  add_rdma_test(${program} ring 4 2 1 uc "")
endforeach()
foreach(program failures mismatch restart)
  add_rdma_test(${program} mesh 3 2 1 uc "")
  add_rdma_test(${program} ring 4 1 1 rc "")
endforeach()

# What UC loses, nobody sends again.
add_test_program(small mlxd::mlxd small.c)
add_rdma_test(small mesh 3 2 1 uc "" 20000)
add_rdma_test(small ring 3 1 2 rc "" 2000)

# Programs that start their ranks by themselves.
set(rdma_with "${ctests_dir}/rdma_with.sh")
foreach(queue_pair rc uc)
  add_test(NAME rdma_peer_lost_${queue_pair}
    COMMAND "${rdma_with}" 1 $<TARGET_FILE:peer_lost> rdma)
  set_rdma_properties(rdma_peer_lost_${queue_pair} MLXD_RDMA_QP=${queue_pair})
endforeach()
add_test_program(rdma_misconfigured mlxd::mlxd rdma_misconfigured.c)
add_test(NAME rdma_misconfigured_devices
  COMMAND "${rdma_with}" 1 $<TARGET_FILE:rdma_misconfigured> devices)
set_rdma_properties(rdma_misconfigured_devices "")

# Those that need no devices, and no libibverbs.
add_test(NAME rdma_misconfigured_matrix COMMAND rdma_misconfigured matrix)
set_rdma_properties(rdma_misconfigured_matrix "")
add_test_program(rdma_start mlxd::mlxd rdma_start.c)
target_link_libraries(rdma_start PRIVATE ${CMAKE_DL_LIBS})
add_test(NAME rdma_start COMMAND rdma_start)
set_rdma_properties(rdma_start "")
add_test(NAME rdma_start_without_library
  COMMAND "${ctests_dir}/without.sh" libibverbs $<TARGET_FILE:rdma_start>)
set_rdma_properties(rdma_start_without_library "")
