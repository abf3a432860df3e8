# The tests over MPI, label `mpi`: the programs that the ring is tested with, started by the launchers of
# the MPIs that are there (ctests/mpi_run.sh); where one is not, its tests are skipped.

set(mpi_run "${ctests_dir}/mpi_run.sh")

# add_mpi_test(name mpi ranks settings command...): `settings` are NAME=value, separated by spaces.
function(add_mpi_test name mpi ranks settings)
  set(test mpi_${name}_${mpi}_${ranks})
  add_test(NAME ${test} COMMAND "${mpi_run}" ${mpi} ${ranks} ${ARGN})
  separate_arguments(settings)
  list(APPEND settings "MLXD_TEST_MPI_DIR=${PROJECT_BINARY_DIR}/mpi")
  set(labels mpi)
  if(ranks LESS 4)
    list(APPEND labels quick)
  endif()
  # MPI looks for its messages without pause: beside other tests both would take turns.
  set_tests_properties(${test} PROPERTIES LABELS "${labels}" TIMEOUT 200 PROCESSORS 2
    SKIP_RETURN_CODE 77 ENVIRONMENT "${settings}")
endfunction()

# add_mpi_ranks(mpi settings suffix programs ranks...)
function(add_mpi_ranks mpi settings suffix programs)
  foreach(program IN LISTS programs)
    foreach(ranks IN LISTS ARGN)
      add_mpi_test(${program}${suffix} ${mpi} ${ranks} "${settings}" $<TARGET_FILE:${program}>)
    endforeach()
  endforeach()
endfunction()

set(matrices matrix_reduce matrix_move matrix_p2p)
set(others special_values groups concurrency arguments)

add_mpi_ranks(openmpi "" "" "${matrices};${others}" 1 2 3 4 5 8)
add_mpi_ranks(openmpi "" "" "large;edges" 2 4)
add_mpi_ranks(openmpi "" "" "hpp" 1 2 3)
add_mpi_ranks(openmpi "" "" "restart" 1 2 3 4)
# With more ranks than cores MPICH takes 8 ms, a time slice, for each call: a few programs then.
add_mpi_ranks(mpich "" "" "${matrices};${others};hpp;restart" 1 2)
add_mpi_ranks(mpich "" "" "large;edges" 2)
add_mpi_ranks(mpich "" "" "special_values;groups;arguments" 3 4)
add_mpi_ranks(mpich "" "" "groups;arguments" 5 8)

# Waits with a limit, on memory of the library's own; calls cut into parts; calls compared.
set(limit "MLXD_TIMEOUT_MS=60000")
foreach(mpi openmpi mpich)
  add_mpi_ranks(${mpi} "${limit}" "_bounded" "${matrices};special_values;concurrency;groups" 2)
  add_mpi_ranks(${mpi} "MLXD_MPI_PART_BYTES=64" "_parts" "${matrices}" 2)
  add_mpi_ranks(${mpi} "MLXD_CHECK=1" "_checked" "${matrices};groups;concurrency" 2)
  # An abort ends only waits that have a limit, or that is what MPI's blocking calls leave of it.
  add_mpi_ranks(${mpi} "${limit}" "" "failures" 2)
  add_mpi_ranks(${mpi} "${limit} MLXD_CHECK=1" "" "mismatch" 2)
endforeach()
add_mpi_ranks(openmpi "${limit}" "_bounded" "${matrices}" 3 8)
add_mpi_ranks(openmpi "MLXD_MPI_PART_BYTES=64" "_parts" "${matrices}" 3)
add_mpi_ranks(openmpi "${limit}" "" "failures" 1 3 4)
add_mpi_ranks(openmpi "${limit} MLXD_CHECK=1" "" "mismatch" 3 4)

# The newest of each family, and the binary interface of MPI 5.
foreach(mpi openmpi5 mpich5 mpich5_abi impi impi_abi)
  add_mpi_ranks(${mpi} "" "" "matrix_reduce;matrix_p2p;special_values;groups;concurrency" 2)
  add_mpi_ranks(${mpi} "${limit}" "" "failures" 2)
endforeach()

# Messages of more than 2 GiB, on the program's memory and on the library's own.
foreach(mpi openmpi mpich)
  add_mpi_ranks(${mpi} "" "" "huge" 2)
  set_tests_properties(mpi_huge_${mpi}_2 PROPERTIES LABELS "mpi;long-memory" TIMEOUT 300)
endforeach()
add_mpi_ranks(openmpi "MLXD_TIMEOUT_MS=200000" "_bounded" "huge" 2)
set_tests_properties(mpi_huge_bounded_openmpi_2 PROPERTIES LABELS "mpi;long-memory" TIMEOUT 300)

# Starts.
add_test_program(mpi_start mlxd::mlxd mpi_start.c)
set(start $<TARGET_FILE:mpi_start>)
foreach(mpi openmpi mpich)
  foreach(scene launched disagree late)
    add_mpi_test(${scene} ${mpi} 2 "" ${start} ${scene})
  endforeach()
  add_mpi_test(unnamed ${mpi} 2 "MLX_MPI_LIBNAME=/no/such/libmpi.so" ${start} unnamed)
endforeach()
# They need both families.
add_mpi_test(mismatched openmpi 2 "MLX_MPI_LIBNAME=libmpich.so.12" ${start} mismatched)
add_mpi_test(mismatched mpich 2 "MLX_MPI_LIBNAME=libmpi.so.40" ${start} mismatched)
add_mpi_test(alone openmpi 0 "MLX_MPI_LIBNAME=libmpi.so.40" ${start} alone)
add_mpi_test(alone mpich 0 "MLX_MPI_LIBNAME=libmpich.so.12" ${start} alone)
add_test(NAME mpi_absent COMMAND "${ctests_dir}/without.sh"
  "libmpi libmpich libmpi_abi" mpi_start absent)
set_tests_properties(mpi_absent PROPERTIES LABELS "mpi;quick" TIMEOUT 60 SKIP_RETURN_CODE 77
  ENVIRONMENT "PATH=$<TARGET_FILE_DIR:mpi_start>:$ENV{PATH}")

# Programs that use MPI themselves; an MPI that wants all calls from one thread; one with a call that
# takes too long: compiled for each.
add_test_program(mpi_waits mlxd::mlxd mpi_waits.c)
set(waits $<TARGET_FILE:mpi_waits>)
foreach(mpi openmpi mpich)
  add_mpi_test(waits_message ${mpi} 2 "" ${waits} message)
  find_program(MLXD_MPICC_${mpi} mpicc.${mpi})
  mark_as_advanced(MLXD_MPICC_${mpi})
  set(mpicc "${MLXD_MPICC_${mpi}}")
  set(program "${PROJECT_BINARY_DIR}/ctests/mpi_program_${mpi}")
  set(funneled "${PROJECT_BINARY_DIR}/ctests/libfunneled_${mpi}.so")
  set(stuck "${PROJECT_BINARY_DIR}/ctests/libstuck_${mpi}.so")
  if(mpicc)
    add_custom_command(OUTPUT "${program}"
      COMMAND "${mpicc}" -std=c11 -O1 -Wall -Wextra -Werror "-I${PROJECT_SOURCE_DIR}/include"
              "${ctests_dir}/mpi_program.c" -o "${program}" "${lib_dir}/${lib_file}"
              "-Wl,-rpath,${lib_dir}" -lpthread -lm
      DEPENDS "${ctests_dir}/mpi_program.c" "${ctests_dir}/check.h" mlxd_build VERBATIM)
    foreach(library funneled stuck)
      add_custom_command(OUTPUT "${${library}}"
        COMMAND "${mpicc}" -std=c11 -O1 -Wall -Wextra -Werror -shared -fPIC
                "${ctests_dir}/mpi_${library}.c" -o "${${library}}"
        DEPENDS "${ctests_dir}/mpi_${library}.c" VERBATIM)
    endforeach()
    add_custom_target(mpi_programs_${mpi} ALL DEPENDS "${program}" "${funneled}" "${stuck}")
    foreach(scene multiple funneled elsewhere ended)
      add_mpi_test(program_${scene} ${mpi} 2 "" "${program}" ${scene})
    endforeach()
    add_mpi_test(program_multiple ${mpi} 1 "" "${program}" multiple)
    add_mpi_ranks(${mpi} "MLX_MPI_LIBNAME=${funneled}" "_funneled"
      "${matrices};special_values;concurrency;groups" 2)
    add_mpi_test(waits_crossed ${mpi} 2 "MLXD_TIMEOUT_MS=60000" ${waits} crossed)
    add_mpi_test(waits_crossed_funneled ${mpi} 2 "MLX_MPI_LIBNAME=${funneled}" ${waits} crossed)
    set(slow "MLX_MPI_LIBNAME=${stuck} MLXD_TEST_STUCK=MPI_Comm_split MLXD_TIMEOUT_MS=3000")
    add_mpi_test(waits_stuck ${mpi} 2 "${slow}" ${waits} stuck)
    add_mpi_test(waits_stuck_funneled ${mpi} 2 "${slow} MLXD_TEST_FUNNELED=1" ${waits} stuck)
    set(slow "MLX_MPI_LIBNAME=${stuck} MLXD_TEST_STUCK=MPI_Init_thread MLXD_CONNECT_TIMEOUT_MS=700")
    add_mpi_test(waits_init ${mpi} 2 "${slow}" ${waits} init)
  else()
    add_test(NAME mpi_programs_${mpi} COMMAND sh -c
      "echo 'skipped: no mpicc.${mpi} when CMake ran'; exit 77")
    set_tests_properties(mpi_programs_${mpi} PROPERTIES LABELS "mpi;quick" SKIP_RETURN_CODE 77)
  endif()
endforeach()

# Three ranks, of which every two have a group as well.
if(MLXD_MPICC_openmpi)
  add_mpi_test(waits_crossed openmpi 3 "MLXD_TIMEOUT_MS=60000" ${waits} crossed)
  add_mpi_test(waits_crossed_funneled openmpi 3
    "MLX_MPI_LIBNAME=${PROJECT_BINARY_DIR}/ctests/libfunneled_openmpi.so" ${waits} crossed)
endif()

if(MLXD_BUILD_EXAMPLES AND TARGET train_digits)
  foreach(mpi openmpi mpich)
    add_test(NAME mpi_train_digits_${mpi}
      COMMAND "${ctests_dir}/train_digits.sh" "${launch}" $<TARGET_FILE:train_digits>
              "${PROJECT_SOURCE_DIR}/examples/data/digits.csv.gz" ${mpi})
    set_tests_properties(mpi_train_digits_${mpi} PROPERTIES LABELS mpi TIMEOUT 300 PROCESSORS 2
      SKIP_RETURN_CODE 77)
  endforeach()
endif()
