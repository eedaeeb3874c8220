# Flags and helpers shared by every folder.
add_library(cairn_flags INTERFACE)
target_compile_features(cairn_flags INTERFACE c_std_17)
target_compile_options(cairn_flags INTERFACE
  -std=gnu17 -O2 -g -fno-omit-frame-pointer -fno-common -fno-semantic-interposition
  -fstack-protector-strong -fPIC
  -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wundef
  -Wvla -Wformat=2 -Wpointer-arith -Wcast-qual -Wwrite-strings -Wimplicit-fallthrough
  -Wdouble-promotion)
target_compile_definitions(cairn_flags INTERFACE _GNU_SOURCE)
target_include_directories(cairn_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_link_libraries(cairn_flags INTERFACE Threads::Threads)
if(CAIRN_WERROR)
  target_compile_options(cairn_flags INTERFACE -Werror)
endif()
if(CAIRN_FUZZ)
  if(NOT CMAKE_C_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "CAIRN_FUZZ=ON needs clang: cmake -DCMAKE_C_COMPILER=clang-14")
  endif()
  set(CAIRN_SANITIZE address)
  target_compile_options(cairn_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
if(CAIRN_SANITIZE STREQUAL "address")
  target_compile_options(cairn_flags INTERFACE -fsanitize=address,undefined
    -fno-sanitize-recover=undefined)
  target_link_options(cairn_flags INTERFACE -fsanitize=address,undefined)
elseif(CAIRN_SANITIZE STREQUAL "thread")
  target_compile_options(cairn_flags INTERFACE -fsanitize=thread)
  target_link_options(cairn_flags INTERFACE -fsanitize=thread)
elseif(CAIRN_SANITIZE)
  message(FATAL_ERROR "CAIRN_SANITIZE=${CAIRN_SANITIZE}: use address, thread or OFF")
elseif(CAIRN_COVERAGE)
  # Threads that count the same line without atomics leave counts below zero, which gcovr refuses.
  target_compile_options(cairn_flags INTERFACE --coverage -fprofile-update=atomic -O0)
  target_link_options(cairn_flags INTERFACE --coverage)
else()
  target_compile_options(cairn_flags INTERFACE -D_FORTIFY_SOURCE=2)
  target_link_options(cairn_flags INTERFACE -Wl,-z,relro,-z,now,-z,defs)
endif()

# One layer: an object library of the named sources.
function(cairn_layer name)
  add_library(${name} OBJECT ${ARGN})
  target_link_libraries(${name} PRIVATE cairn_flags)
endfunction()
