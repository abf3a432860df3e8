# The tests over nccl. Label `nccl`: with stand-ins for CUDA's driver and for NCCL (ctests/fake_*.c), which
# need no GPU; label `gpu`: with the real ones, skipped where there is no device.

# --- the stand-ins ---------------------------------------------------------------------------------

set(fake_dir "${PROJECT_BINARY_DIR}/ctests/fake")

# add_fake(target folder file sources [definitions...]): one of the libraries, in a folder of its own so
# that LD_LIBRARY_PATH chooses it.
function(add_fake target folder file sources)
  list(TRANSFORM sources PREPEND "${ctests_dir}/")
  add_library(${target} SHARED ${sources})
  set_target_properties(${target} PROPERTIES
    C_STANDARD 11 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF C_VISIBILITY_PRESET hidden
    PREFIX "" OUTPUT_NAME ${file} SUFFIX "" NO_SONAME ON
    LIBRARY_OUTPUT_DIRECTORY "${folder}")
  target_compile_options(${target} PRIVATE ${warnings})
  target_compile_definitions(${target} PRIVATE ${ARGN})
  target_link_options(${target} PRIVATE "-Wl,-soname,${file}")
  target_link_libraries(${target} PRIVATE Threads::Threads m ${CMAKE_DL_LIBS})
endfunction()

set(fake_cuda_sources fake_cuda.c fake_memory.c fake_streams.c fake_captures.c fake_events.c fake_copies.c)
set(fake_nccl_sources fake_nccl.c fake_nccl_start.c fake_nccl_calls.c fake_nccl_ops.c fake_traffic.c
                      fake_numbers.c)
add_fake(fake_cuda "${fake_dir}" libcuda.so.1 "${fake_cuda_sources}")
add_fake(fake_nccl "${fake_dir}" libnccl.so.2 "${fake_nccl_sources}")

# Variants: only one of the two; one without a function.
add_fake(fake_cuda_only "${fake_dir}_cuda_only" libcuda.so.1 "${fake_cuda_sources}")
add_fake(fake_nccl_only "${fake_dir}_nccl_only" libnccl.so.2 "${fake_nccl_sources}")
add_fake(fake_nccl_without_async_error "${fake_dir}_without_async_error" libnccl.so.2 "${fake_nccl_sources}"
         ncclCommGetAsyncError=removed_async_error)
add_fake(fake_cuda_without_host_functions "${fake_dir}_without_host_functions" libcuda.so.1
         "${fake_cuda_sources}" cuLaunchHostFunc=removed_host_functions)
# Found by no name but its own.
add_fake(fake_nccl_named "${fake_dir}_named" libother-nccl.so "${fake_nccl_sources}")

# --- programs --------------------------------------------------------------------------------------

foreach(program nccl_premises nccl_reduce nccl_move nccl_streams nccl_arguments nccl_groups nccl_failures
                nccl_lost nccl_aborts nccl_errors nccl_start nccl_process nccl_exit nccl_mismatch nccl_capture)
  add_test_program(${program} mlxd::mlxd ${program}.c)
  target_link_libraries(${program} PRIVATE ${CMAKE_DL_LIBS})
endforeach()

# add_nccl_test(name folder settings program arguments...): over the stand-ins in this folder; `settings` are
# NAME=value, separated by spaces.
function(add_nccl_test name folder settings program)
  add_test(NAME nccl_${name} COMMAND ${program} ${ARGN})
  separate_arguments(settings)
  set(labels nccl)
  if(NOT name MATCHES "_4$")
    list(APPEND labels quick)
  endif()
  # Failures and starts mostly wait.
  set(processors 2)
  if(name MATCHES "^(error|lost|start|process|refused)_")
    set(processors 1)
  endif()
  set_tests_properties(nccl_${name} PROPERTIES LABELS "${labels}" TIMEOUT 300
    PROCESSORS ${processors}
    ENVIRONMENT "LD_LIBRARY_PATH=${folder};${settings}")
endfunction()

# add_gpu_test(name program arguments...): over what is on this machine. Also a line of the list that
# scripts/test-gpu runs, where there is no CTest.
set(gpu_list "${PROJECT_BINARY_DIR}/ctests/gpu_tests")
file(WRITE "${gpu_list}" "")
function(add_gpu_test name program)
  string(REPLACE ";" " " arguments "${ARGN}")
  file(APPEND "${gpu_list}" "${name} ${program} ${arguments}\n")
  add_test(NAME gpu_${name} COMMAND ${program} ${ARGN})
  set_tests_properties(gpu_${name} PROPERTIES LABELS gpu TIMEOUT 300 SKIP_RETURN_CODE 77
    RUN_SERIAL ON)
endfunction()

# Operations on 1 to 4 ranks; also where everything in NCCL goes on late and in other threads, and where
# what is on a stream begins late.
set(late "FAKE_NCCL_SLOW_MS=2 FAKE_NCCL_DELAY_US=300")
foreach(program reduce move streams arguments groups)
  foreach(ranks 1 2 3 4)
    add_nccl_test(${program}_${ranks} "${fake_dir}" "" nccl_${program} ${ranks})
  endforeach()
  foreach(ranks 1 2 4)
    add_gpu_test(${program}_${ranks} nccl_${program} ${ranks})
  endforeach()
endforeach()
foreach(ranks 1 2 3 4)
  add_nccl_test(premises_${ranks} "${fake_dir}" "" nccl_premises ${ranks})
  add_nccl_test(premises_${ranks}_late "${fake_dir}" "${late}" nccl_premises ${ranks})
endforeach()
foreach(program streams failures groups)
  add_nccl_test(${program}_2_late "${fake_dir}" "${late}" nccl_${program} 2)
  add_nccl_test(${program}_3_late "${fake_dir}" "${late}" nccl_${program} 3)
endforeach()
foreach(program reduce move)
  add_nccl_test(${program}_2_delayed "${fake_dir}" "FAKE_NCCL_DELAY_US=100" nccl_${program} 2)
  add_nccl_test(${program}_2_at_once "${fake_dir}" "FAKE_NCCL_LAUNCH=first" nccl_${program} 2)
  add_nccl_test(${program}_2_checked "${fake_dir}" "MLXD_CHECK=1" nccl_${program} 2)
  # All ranks on one device, each with a host's name of its own, as on a machine with one GPU.
  add_nccl_test(${program}_3_one_device "${fake_dir}" "FAKE_NCCL_DEVICES=1" nccl_${program} 3)
endforeach()

# The measurement, which is no test but must run; the example.
add_executable(nccl_overhead "${PROJECT_SOURCE_DIR}/benches/nccl_overhead.c")
set_target_properties(nccl_overhead PROPERTIES
  C_STANDARD 11 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF
  RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/ctests")
target_compile_options(nccl_overhead PRIVATE ${warnings})
target_include_directories(nccl_overhead PRIVATE "${ctests_dir}")
target_link_libraries(nccl_overhead PRIVATE mlxd::mlxd Threads::Threads ${CMAKE_DL_LIBS})
set(nccl_run "${ctests_dir}/nccl_run.sh")
foreach(ranks 1 2)
  add_nccl_test(overhead_${ranks} "${fake_dir}" "" "${nccl_run}" ${ranks} $<TARGET_FILE:nccl_overhead>)
endforeach()
if(MLXD_BUILD_EXAMPLES AND TARGET gpu_all_sum)
  foreach(ranks 1 2 4)
    add_nccl_test(example_${ranks} "${fake_dir}" "" "${nccl_run}" ${ranks} $<TARGET_FILE:gpu_all_sum>)
  endforeach()
  add_nccl_test(example_alone "${fake_dir}" "" gpu_all_sum)
  add_nccl_test(example_without_gpu "" "" gpu_all_sum)
  set_tests_properties(nccl_example_without_gpu PROPERTIES
    PASS_REGULAR_EXPRESSION "no CUDA driver here|0 wrong")
endif()

# scripts/test-gpu itself, on binaries that were carried to another folder, over the stand-ins.
add_test(NAME nccl_test_gpu COMMAND "${ctests_dir}/test_gpu.sh" "${PROJECT_SOURCE_DIR}/scripts/test-gpu"
                                    "${PROJECT_BINARY_DIR}")
set_tests_properties(nccl_test_gpu PROPERTIES LABELS nccl TIMEOUT 300 PROCESSORS 2)

# Failures.
foreach(ranks 2 3 4)
  add_nccl_test(failures_${ranks} "${fake_dir}" "" nccl_failures ${ranks})
endforeach()
foreach(ranks 2 4)
  add_gpu_test(premises_${ranks} nccl_premises ${ranks})
  add_gpu_test(failures_${ranks} nccl_failures ${ranks})
endforeach()
add_gpu_test(premises_1 nccl_premises 1)
foreach(ranks 2 3)
  foreach(way checked unchecked)
    add_nccl_test(mismatch_${ranks}_${way} "${fake_dir}" "" nccl_mismatch ${ranks} ${way})
  endforeach()
endforeach()
foreach(ranks 1 2)
  add_nccl_test(capture_${ranks} "${fake_dir}" "" nccl_capture ${ranks})
  add_gpu_test(capture_${ranks} nccl_capture ${ranks})
endforeach()
# Only where the calls are compared first: what they do to real NCCL is not to be tried.
add_gpu_test(mismatch_2 nccl_mismatch 2 checked)
# Aborts that take their time, or never end.
foreach(way returns never)
  set(abort_ms 2000)
  if(way STREQUAL "never")
    set(abort_ms -1)
  endif()
  foreach(scene call stream)
    add_nccl_test(lost_abort_${scene}_${way} "${fake_dir}"
                  "FAKE_NCCL_HANG=launch:2 FAKE_NCCL_ABORT_MS=${abort_ms}"
                  nccl_aborts 2 ${scene} ${way})
  endforeach()
  add_nccl_test(lost_abort_split_${way} "${fake_dir}"
                "FAKE_NCCL_HANG=init:2 FAKE_NCCL_ABORT_MS=${abort_ms}" nccl_aborts 2 split ${way})
  add_nccl_test(lost_abort_start_${way} "${fake_dir}"
                "FAKE_NCCL_HANG=init:1 FAKE_NCCL_RANK=1 FAKE_NCCL_ABORT_MS=${abort_ms} MLXD_CONNECT_TIMEOUT_MS=1500"
                nccl_aborts 2 start ${way})
endforeach()
add_nccl_test(lost_abort_inside "${fake_dir}" "FAKE_NCCL_BLOCK=allgather:1" nccl_aborts 2 inside returns)
foreach(scene waiting stream staged recv idle)
  foreach(ranks 2 3)
    add_nccl_test(lost_${scene}_${ranks} "${fake_dir}" "" nccl_lost ${ranks} ${scene})
    add_nccl_test(lost_${scene}_${ranks}_noticed "${fake_dir}" "FAKE_NCCL_PEER_DEATH=error"
                  nccl_lost ${ranks} ${scene})
  endforeach()
  foreach(ranks 2 4)
    add_gpu_test(lost_${scene}_${ranks} nccl_lost ${ranks} ${scene})
  endforeach()
endforeach()

# What NCCL and CUDA report, on one rank or on all; codes that no version has too.
set(backend MLXD_ERROR_BACKEND)
set(operation nccl_errors 2 operation ${backend})
set(on_stream nccl_errors 3 stream ${backend})
set(starting nccl_errors 2 start ${backend})
add_nccl_test(error_start "${fake_dir}" "FAKE_NCCL_INIT_ERROR=5" ${starting} "invalid usage")
add_nccl_test(error_start_one "${fake_dir}" "FAKE_NCCL_INIT_ERROR=1 FAKE_NCCL_RANK=1" ${starting}
              "unhandled cuda error")
add_nccl_test(error_start_unknown "${fake_dir}" "FAKE_NCCL_INIT_ERROR=99" ${starting} 99
              "unknown result code")
add_nccl_test(error_start_call "${fake_dir}" "FAKE_NCCL_RETURN=init:1:3 FAKE_NCCL_RANK=0" ${starting}
              "internal error")
add_nccl_test(error_id "${fake_dir}" "FAKE_NCCL_RETURN=uniqueid:*:2 FAKE_NCCL_RANK=0" ${starting}
              "system error")
add_nccl_test(error_start_hang "${fake_dir}"
              "FAKE_NCCL_HANG=init:1 FAKE_NCCL_RANK=1 MLXD_CONNECT_TIMEOUT_MS=1500"
              nccl_errors 2 start MLXD_ERROR_TIMEOUT)
foreach(code 6 99)
  foreach(operation_name allreduce allgather broadcast send recv)
    add_nccl_test(error_async_${operation_name}_${code} "${fake_dir}"
      "FAKE_NCCL_ASYNC_ERROR=${operation_name}:2:${code} FAKE_NCCL_RANK=1" ${operation} ${code})
    add_nccl_test(error_call_${operation_name}_${code} "${fake_dir}"
      "FAKE_NCCL_RETURN=${operation_name}:2:${code} FAKE_NCCL_RANK=0" ${operation} ${code})
    add_nccl_test(error_async_${operation_name}_${code}_stream "${fake_dir}"
      "FAKE_NCCL_ASYNC_ERROR=${operation_name}:2:${code} FAKE_NCCL_RANK=2" ${on_stream} ${code})
    add_nccl_test(error_call_${operation_name}_${code}_stream "${fake_dir}"
      "FAKE_NCCL_RETURN=${operation_name}:2:${code} FAKE_NCCL_RANK=2" ${on_stream} ${code})
  endforeach()
endforeach()
add_nccl_test(error_group_end "${fake_dir}" "FAKE_NCCL_RETURN=groupend:1:1" ${operation}
              "unhandled cuda error")
add_nccl_test(error_query "${fake_dir}" "FAKE_NCCL_RETURN=asyncerror:6:3"
              nccl_errors 2 anywhere ${backend} "internal error")
add_nccl_test(error_hang "${fake_dir}"
              "FAKE_NCCL_HANG=allreduce:3 FAKE_NCCL_RANK=0 MLXD_TIMEOUT_MS=1000"
              nccl_errors 2 operation MLXD_ERROR_TIMEOUT)
add_nccl_test(error_hang_stream "${fake_dir}"
              "FAKE_NCCL_HANG=allreduce:3 FAKE_NCCL_RANK=1 MLXD_TIMEOUT_MS=1000"
              nccl_errors 3 stream MLXD_ERROR_TIMEOUT)
foreach(call cuEventRecord cuStreamWaitEvent cuLaunchHostFunc cuMemcpyAsync cuEventQuery)
  add_nccl_test(error_${call} "${fake_dir}" "FAKE_NCCL_CUDA_ERROR=${call}:2:719" ${operation} 719)
endforeach()
add_nccl_test(error_one_device "${fake_dir}" "FAKE_NCCL_DEVICES=1 NCCL_HOSTID=the-same"
              ${starting} "Duplicate GPU")

# Starts.
foreach(ranks 2 4)
  foreach(scene mlx torchrun mlxd gathered)
    add_nccl_test(start_${scene}_${ranks} "${fake_dir}" "" nccl_start ${scene} ${ranks})
    add_gpu_test(start_${scene}_${ranks} nccl_start ${scene} ${ranks})
  endforeach()
endforeach()
foreach(scene threads left forked)
  foreach(ranks 2 4)
    add_nccl_test(process_${scene}_${ranks} "${fake_dir}" "" nccl_process ${scene} ${ranks})
  endforeach()
  add_gpu_test(process_${scene}_2 nccl_process ${scene} 2)
endforeach()
add_nccl_test(process_opening "${fake_dir}" "FAKE_NCCL_CUDA_INIT=wait" nccl_process opening 1)
foreach(scene cuda queue)
  add_nccl_test(process_exit_${scene} "${fake_dir}" "" nccl_exit ${scene})
endforeach()
add_nccl_test(process_exit_world "${fake_dir}" "" nccl_exit world 2)
add_nccl_test(start_slow "${fake_dir}" "FAKE_NCCL_SLOW_MS=700" nccl_start mlx 3)
add_nccl_test(start_alone "${fake_dir}" "" nccl_start alone)
add_gpu_test(start_alone nccl_start alone)
add_nccl_test(start_often "${fake_dir}" "" nccl_start often 3)
add_gpu_test(start_often nccl_start often 2)
add_nccl_test(start_hidden_devices "${fake_dir}" "CUDA_VISIBLE_DEVICES=5,2" nccl_start mlx 2)
add_nccl_test(start_oldest "${fake_dir}" "FAKE_NCCL_VERSION=21800" nccl_start mlx 2)
add_nccl_test(start_newer "${fake_dir}" "FAKE_NCCL_VERSION=23500" nccl_start mlx 2)
add_nccl_test(start_named "${fake_dir}_cuda_only"
              "MLXD_NCCL_LIBNAME=${fake_dir}_named/libother-nccl.so" nccl_start mlx 2)

# Not to be had, and why.
set(refused nccl_start refused)
set(absent nccl_start absent)
add_nccl_test(refused_no_nccl "${fake_dir}_cuda_only" "" ${absent} libnccl.so.2 MLXD_NCCL_LIBNAME)
add_nccl_test(refused_no_file "${fake_dir}" "MLXD_NCCL_LIBNAME=/no/such/libnccl.so" ${refused}
              MLXD_NCCL_LIBNAME /no/such/libnccl.so)
add_nccl_test(refused_other_library "${fake_dir}" "MLXD_NCCL_LIBNAME=libm.so.6" ${refused} libm.so.6
              ncclGetVersion)
add_nccl_test(refused_no_device "${fake_dir}" "FAKE_NCCL_DEVICES=0" ${refused} device)
add_nccl_test(refused_hidden_devices "${fake_dir}" "CUDA_VISIBLE_DEVICES=-1" ${refused} device)
add_nccl_test(refused_broken_driver "${fake_dir}" "FAKE_NCCL_CUDA_ERROR=cuInit:*:999" ${refused} 999)
add_nccl_test(refused_unknown_code "${fake_dir}" "FAKE_NCCL_CUDA_ERROR=cuInit:*:12345" ${refused} 12345)
add_nccl_test(refused_version "${fake_dir}" "FAKE_NCCL_VERSION=21701" ${refused} 2.17.1 2.18)
add_nccl_test(refused_ancient "${fake_dir}" "FAKE_NCCL_VERSION=2708" ${refused} 2.7.8)
add_nccl_test(refused_version_call "${fake_dir}" "FAKE_NCCL_RETURN=version:*:99" ${refused}
              ncclGetVersion 99)
add_nccl_test(refused_symbol "${fake_dir}_without_async_error" "" ${refused} ncclCommGetAsyncError)
add_nccl_test(refused_cuda_symbol "${fake_dir}_without_host_functions" "" ${refused} cuLaunchHostFunc)
add_nccl_test(refused_no_driver "${fake_dir}_nccl_only" "" ${absent} libcuda.so.1)
add_nccl_test(refused_nothing "" "" ${absent} libnccl.so.2)

# The vendor's own: its library without a driver, its headers against the stand-ins'.
set(wheels "${PROJECT_BINARY_DIR}/nccl/packages")
add_nccl_test(real_without_driver "" "MLXD_NCCL_LIBNAME=${wheels}/nvidia/nccl/lib/libnccl.so.2"
              nccl_start real)
set(fake_sources ${fake_cuda_sources} ${fake_nccl_sources})
list(TRANSFORM fake_sources PREPEND "${ctests_dir}/")
add_test(NAME nccl_headers COMMAND "${ctests_dir}/nccl_headers.sh" "${CMAKE_C_COMPILER}" "${wheels}"
                                   ${fake_sources})
set_tests_properties(nccl_headers PROPERTIES LABELS "nccl;quick" TIMEOUT 60)
set_tests_properties(nccl_headers nccl_real_without_driver nccl_refused_no_nccl nccl_refused_no_driver
                     nccl_refused_nothing PROPERTIES SKIP_RETURN_CODE 77)
