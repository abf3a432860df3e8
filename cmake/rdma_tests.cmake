# The tests over RDMA, label `rdma`: the programs that the ring is tested with, on the devices of this
# machine (ctests/rdma_devices.sh) or those of scripts/rxe-vm; elsewhere they are skipped, unless
# MLXD_TEST_RDMA=required. All of it is to take minutes where the machine is emulated.

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
  if(settings MATCHES NO_TCP)
    string(APPEND test _plain)
  endif()
  add_test(NAME ${test} COMMAND ${rdma_run} ${topology} ${ranks} ${devices} ${wires}
                                $<TARGET_FILE:${program}> ${ARGN})
  set_rdma_properties(${test} "MLXD_RDMA_QP=${queue_pair};${settings}")
endfunction()

# Each of the eight ways to connect two ranks runs another part of the matrix, so that together they run all of
# it; on three ranks they run half of it. With more ranks every start takes seconds: then there are four of the
# ways, in which any two of topology, type of queue pairs and number of devices meet, and each has one of the
# three programs.
set(matrices matrix_reduce matrix_move matrix_p2p)
set(parts_on_2 8)
set(parts_on_3 16)
set(parts_on_4 32)
set(parts_on_8 128)
foreach(ranks 2 3 4 8)
  set(part 0)
  foreach(topology mesh ring)
    foreach(queue_pair rc uc)
      foreach(devices 1 2)
        # Half of the ways send from where callers' memory is, whatever that costs: of either type of
        # queue pairs, and on one device and on two.
        set(register auto)
        if(part MATCHES "[1247]" OR (ranks GREATER 3 AND part MATCHES "[35]"))
          set(register always)
        endif()
        set(programs ${matrices})
        if(ranks GREATER 3)
          math(EXPR which "(${part} / 2 + ${ranks} / 4) % 3")
          list(GET matrices ${which} programs)
          if(part MATCHES "[1247]")
            set(programs)
          endif()
        endif()
        foreach(program IN LISTS programs)
          add_rdma_test(${program} ${topology} ${ranks} ${devices} 1 ${queue_pair}
            "MLXD_TEST_PART=${part}/${parts_on_${ranks}};MLXD_RDMA_REGISTER=${register}")
        endforeach()
        math(EXPR part "${part} + 1")
      endforeach()
    endforeach()
  endforeach()
endforeach()

# Several wires between two ranks.
add_rdma_test(matrix_reduce ring 4 2 4 rc "MLXD_TEST_PART=24/32")
add_rdma_test(matrix_move ring 3 2 2 uc "MLXD_TEST_PART=9/16")
add_rdma_test(matrix_p2p mesh 3 2 3 uc "MLXD_TEST_PART=10/16")
add_rdma_test(matrix_reduce mesh 2 1 4 rc "MLXD_TEST_PART=11/16")

add_rdma_test(groups mesh 4 1 1 rc "")
add_rdma_test(groups ring 4 2 1 uc "")
foreach(program concurrency failures mismatch)
  add_rdma_test(${program} mesh 3 2 1 uc "")
  add_rdma_test(${program} ring 3 1 1 rc "")
endforeach()
add_rdma_test(restart mesh 3 2 1 uc "")

# What UC loses, nobody sends again.
add_test_program(small mlxd::mlxd small.c)
add_rdma_test(small mesh 2 2 1 uc "" 20000)
add_rdma_test(small ring 3 1 2 uc "" 300)
set_tests_properties(rdma_small_mesh_2_uc_on_2 PROPERTIES TIMEOUT 600)

# Devices between which packets are lost. Limits end what nothing else does; starts have 10 s for a first message.
add_test_program(rdma_lossy mlxd::mlxd rdma_lossy.c)
function(add_lossy_test name queue_pair settings program)
  add_test(NAME rdma_lossy_${name} COMMAND "${ctests_dir}/rdma_lossy.sh" ${rdma_run} mesh 2 2 1
                                           $<TARGET_FILE:${program}> ${ARGN})
  set_rdma_properties(rdma_lossy_${name} "MLXD_RDMA_QP=${queue_pair};MLXD_TIMEOUT_MS=15000;\
MLXD_RECV_TIMEOUT_MS=15000;${settings}")
endfunction()
add_lossy_test(rc rc "MLXD_RDMA_REGISTER=always;MLXD_TEST_LOST=counted" rdma_lossy reliable)
add_lossy_test(small_rc rc "" small 60)
add_lossy_test(uc uc "MLXD_RDMA_REGISTER=always" rdma_lossy unreliable 1)
# There a rank that is not told what was lost waits for its limit.
add_lossy_test(uc_plain uc "MLXD_TEST_NO_TCP=1" rdma_lossy unreliable 2)

# Memory that is sent from where it is, whatever becomes of it between calls.
add_test_program(rdma_memory mlxd::mlxd rdma_memory.c)
foreach(way "mesh;2;1;1;rc" "ring;3;2;1;uc")
  list(POP_BACK way queue_pair)
  string(REPLACE ";" "_" test "rdma_memory_${way}_${queue_pair}")
  add_test(NAME ${test} COMMAND "${ctests_dir}/rdma_lent.sh" "${launch}" ${way} $<TARGET_FILE:rdma_memory>)
  set_rdma_properties(${test} "MLXD_RDMA_QP=${queue_pair};MLXD_RDMA_REGISTER=always")
endforeach()

# Programs that start their ranks by themselves.
set(rdma_with "${ctests_dir}/rdma_with.sh")
add_test(NAME rdma_peer_lost_rc COMMAND "${rdma_with}" 2 $<TARGET_FILE:peer_lost> rdma)
set_rdma_properties(rdma_peer_lost_rc "MLXD_RDMA_QP=rc;MLXD_RDMA_REGISTER=always")
# No completion tells of it there.
foreach(case large_recv large_sum send)
  add_test(NAME rdma_peer_lost_uc_${case}
    COMMAND "${rdma_with}" 2 $<TARGET_FILE:peer_lost> rdma ${case})
  set_rdma_properties(rdma_peer_lost_uc_${case} "MLXD_RDMA_QP=uc;MLXD_RDMA_REGISTER=always")
endforeach()
foreach(queue_pair rc uc)
  add_test(NAME rdma_killed_${queue_pair} COMMAND "${rdma_with}" 2 $<TARGET_FILE:killed>)
  set_rdma_properties(rdma_killed_${queue_pair} MLXD_RDMA_QP=${queue_pair})
endforeach()
add_test_program(rdma_misconfigured mlxd::mlxd rdma_misconfigured.c)
add_test(NAME rdma_misconfigured_devices
  COMMAND "${rdma_with}" 1 $<TARGET_FILE:rdma_misconfigured> devices)
set_rdma_properties(rdma_misconfigured_devices "")

add_test_program(rdma_marks mlxd::mlxd rdma_marks.c)
add_test(NAME rdma_marks COMMAND "${rdma_with}" 2 $<TARGET_FILE:rdma_marks>)
set_rdma_properties(rdma_marks "")
# It looks at every packet, others' too.
set_tests_properties(rdma_marks PROPERTIES RUN_SERIAL TRUE)

# Worlds whose ranks reach each other over RDMA alone: a part of what all others run, then what is theirs.
foreach(arguments "matrix_reduce;mesh;2;1;1;uc;0/128" "matrix_p2p;mesh;3;2;1;rc;1/128"
                  "matrix_move;ring;4;2;1;uc;2/128")
  list(POP_BACK arguments part)
  add_rdma_test(${arguments} "MLXD_TEST_PART=${part};MLXD_TEST_NO_TCP=1")
endforeach()
add_test_program(rdma_plain mlxd::mlxd rdma_plain.c)
add_test(NAME rdma_plain COMMAND "${rdma_with}" 1 $<TARGET_FILE:rdma_plain>)
set_rdma_properties(rdma_plain "")

# The longest begin first.
set_tests_properties(rdma_small_mesh_2_uc_on_2 rdma_peer_lost_rc rdma_plain rdma_misconfigured_devices
  PROPERTIES COST 1000)

# Starts where all is there; where there may be no device or no libibverbs, whatever this machine has;
# devices files that nobody could start from.
add_test_program(rdma_start mlxd::mlxd rdma_start.c)
target_link_libraries(rdma_start PRIVATE ${CMAKE_DL_LIBS})
add_test(NAME rdma_start COMMAND "${rdma_with}" 1 $<TARGET_FILE:rdma_start>)
set_rdma_properties(rdma_start "")
add_test(NAME start_rdma COMMAND rdma_start)
add_test(NAME start_rdma_without_library
  COMMAND "${ctests_dir}/without.sh" libibverbs $<TARGET_FILE:rdma_start>)
add_test(NAME misconfigured_rdma COMMAND rdma_misconfigured matrix)
set_tests_properties(start_rdma start_rdma_without_library misconfigured_rdma PROPERTIES
  LABELS "contract;quick" TIMEOUT 100 SKIP_RETURN_CODE 77)
