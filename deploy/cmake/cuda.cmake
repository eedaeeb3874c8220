# Kernels for GPUs: left out, with a word, where there is no CUDA 13 compiler.
find_program(CAIRN_NVCC nvcc HINTS /usr/local/cuda/bin)
option(CAIRN_CUDA "kernels for GPU memory, needs nvcc 13.0" ON)
set(cairn_gencode)
if(CAIRN_CUDA AND CAIRN_NVCC)
  execute_process(COMMAND ${CAIRN_NVCC} --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET)
  string(REGEX MATCH "release ([0-9]+)\\." nvcc_release "${nvcc_says}")
  if(CMAKE_MATCH_1 AND CMAKE_MATCH_1 GREATER_EQUAL 13)
    foreach(sm 75 80 86 89 90 100 103 120)
      list(APPEND cairn_gencode -gencode arch=compute_${sm},code=sm_${sm})
    endforeach()
    list(APPEND cairn_gencode -gencode arch=compute_75,code=compute_75)
    message(STATUS "CUDA kernels: ${CAIRN_NVCC}, release ${CMAKE_MATCH_1}")
  else()
    message(STATUS "CUDA kernels: left out, ${CAIRN_NVCC} is older than 13.0")
  endif()
elseif(CAIRN_CUDA)
  message(STATUS "CUDA kernels: left out, there is no nvcc; GPUs are reached by their copy engines")
endif()

# The kernels of NAME.cu, which includes the headers named, for all architectures inside of IMAGE.c
# (base/cuda_image.h).
function(cairn_kernels image name)
  if(NOT cairn_gencode)
    return()
  endif()
  set(fatbin ${CMAKE_CURRENT_BINARY_DIR}/${name}.fatbin)
  add_custom_command(OUTPUT ${fatbin}
    COMMAND ${CAIRN_NVCC} -fatbin -O3 -std=c++17 -I${PROJECT_SOURCE_DIR} ${cairn_gencode}
            -o ${fatbin} ${CMAKE_CURRENT_SOURCE_DIR}/${name}.cu
    DEPENDS ${name}.cu ${ARGN} VERBATIM
    COMMENT "CUDA kernels of ${name}.cu for all architectures")
  set_source_files_properties(${image} PROPERTIES OBJECT_DEPENDS ${fatbin}
    COMPILE_DEFINITIONS "CAIRN_CUDA_FATBIN=\"${fatbin}\"")
endfunction()
