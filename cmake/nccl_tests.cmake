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

set(fake_cuda_sources fake_cuda.c fake_streams.c)
set(fake_nccl_sources fake_nccl.c fake_nccl_start.c fake_nccl_calls.c fake_nccl_ops.c)
add_fake(fake_cuda "${fake_dir}" libcuda.so.1 "${fake_cuda_sources}")
add_fake(fake_nccl "${fake_dir}" libnccl.so.2 "${fake_nccl_sources}")

# Variants: only one of the two; one without a function.
add_fake(fake_cuda_only "${fake_dir}_cuda_only" libcuda.so.1 "${fake_cuda_sources}")
add_fake(fake_nccl_only "${fake_dir}_nccl_only" libnccl.so.2 "${fake_nccl_sources}")
add_fake(fake_nccl_without_split "${fake_dir}_without_split" libnccl.so.2 "${fake_nccl_sources}"
         ncclCommSplit=removed_split)
add_fake(fake_nccl_without_text "${fake_dir}_without_text" libnccl.so.2 "${fake_nccl_sources}"
         ncclGetLastError=removed_text)
add_fake(fake_cuda_without_host_functions "${fake_dir}_without_host_functions" libcuda.so.1
         "${fake_cuda_sources}" cuLaunchHostFunc=removed_host_functions)
# Found by no name but its own.
add_fake(fake_nccl_named "${fake_dir}_named" libother-nccl.so "${fake_nccl_sources}")
