# switchyard_library(FOLDER SOURCES a.cpp ... LINKS switchyard_core ...): one static library a folder, named switchyard_FOLDER.
# switchyard_test(FOLDER SOURCES ... ALONE ...): one GoogleTest program a folder, one ctest entry. ALONE: not in the unity build,
# because its local names are those of another source.
option(SWITCHYARD_PRECOMPILED_HEADER "Share precompiled headers" ON)
option(SWITCHYARD_UNITY_BUILD "Compile several sources of a target as one: most of a compilation is reading headers" ON)
# In a unity build GCC takes the types of a source for those of a header.
set(SWITCHYARD_UNITY_FLAGS $<$<BOOL:${SWITCHYARD_UNITY_BUILD}>:-Wno-subobject-linkage>)

add_library(switchyard_options INTERFACE)
add_library(switchyard::options ALIAS switchyard_options)
set_target_properties(switchyard_options PROPERTIES EXPORT_NAME options)
target_compile_features(switchyard_options INTERFACE cxx_std_20)
# Without -fopenmp in our own files at::parallel_for is silently serial.
target_link_libraries(switchyard_options INTERFACE ${TORCH_LIBRARIES} OpenMP::OpenMP_CXX)
target_include_directories(switchyard_options INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:include>)

add_library(switchyard_warnings INTERFACE)
if(SWITCHYARD_DEVELOPER_MODE)
  target_compile_options(switchyard_warnings INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
  # g++ 12 at -O3 warns of plain "literal" + std::string (its bugs 105329 and 105651, fixed in 13).
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(switchyard_warnings INTERFACE -Wno-restrict -Wno-stringop-overflow -Wno-array-bounds)
  endif()
endif()
if(SWITCHYARD_SANITIZER)
  # vptr would need the type information of libtorch's hidden classes. An error ends the program: a message alone passes unseen.
  set(sanitizer_flags -fsanitize=${SWITCHYARD_SANITIZER} -fno-omit-frame-pointer)
  if(SWITCHYARD_SANITIZER MATCHES "undefined")
    list(APPEND sanitizer_flags -fno-sanitize=vptr -fno-sanitize-recover=all)
  endif()
  target_compile_options(switchyard_options INTERFACE ${sanitizer_flags})
  target_compile_definitions(switchyard_options INTERFACE _GLIBCXX_ASSERTIONS)
  target_link_options(switchyard_options INTERFACE ${sanitizer_flags})
  # GCC's documentation: sanitizers make these warn where nothing is wrong. The other builds have them.
  target_compile_options(switchyard_warnings INTERFACE -Wno-maybe-uninitialized -Wno-stringop-overflow -Wno-array-bounds
    -Wno-restrict)
endif()

# Three precompiled headers, because reading one costs every file: what a folder's files mostly need decides which it gets. Files
# still include what they use (tools/check_headers.py compiles without).
set(SWITCHYARD_PRECOMPILED_router operations)
set(SWITCHYARD_PRECOMPILED_balance operations)
set(SWITCHYARD_PRECOMPILED_conform operations)
set(SWITCHYARD_PRECOMPILED_model operations)
set(SWITCHYARD_PRECOMPILED_train operations)
set(SWITCHYARD_PRECOMPILED_kernels autograd)

# What every target of ours gets: shared headers read once for several sources.
function(switchyard_precompile target)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF UNITY_BUILD ${SWITCHYARD_UNITY_BUILD} UNITY_BUILD_BATCH_SIZE 8)
  target_compile_options(${target} PRIVATE ${SWITCHYARD_UNITY_FLAGS})
  if(NOT SWITCHYARD_PRECOMPILED_HEADER)
    return()
  endif()
  cmake_path(GET CMAKE_CURRENT_SOURCE_DIR FILENAME folder)
  set(kind tensor)
  if(DEFINED SWITCHYARD_PRECOMPILED_${folder})
    set(kind ${SWITCHYARD_PRECOMPILED_${folder}})
  endif()
  target_precompile_headers(${target} REUSE_FROM switchyard_precompiled_${kind})
endfunction()

if(SWITCHYARD_PRECOMPILED_HEADER)
  foreach(kind tensor operations autograd)
    set(source "${PROJECT_BINARY_DIR}/precompiled_${kind}.cpp")
    file(CONFIGURE OUTPUT "${source}" CONTENT "// Only carries a precompiled header.\n")
    add_library(switchyard_precompiled_${kind} OBJECT "${source}")
    target_link_libraries(switchyard_precompiled_${kind} PRIVATE switchyard_options switchyard_warnings)
    set_target_properties(switchyard_precompiled_${kind} PROPERTIES CXX_EXTENSIONS OFF)
    target_precompile_headers(switchyard_precompiled_${kind} PRIVATE "${PROJECT_SOURCE_DIR}/cmake/precompiled/${kind}.hpp")
  endforeach()
endif()

function(switchyard_library folder)
  cmake_parse_arguments(arg "" "" "SOURCES;LINKS;PRIVATE_LINKS" ${ARGN})
  set(target switchyard_${folder})
  add_library(${target} STATIC ${arg_SOURCES})
  add_library(switchyard::${folder} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${folder})
  target_link_libraries(${target} PUBLIC switchyard_options ${arg_LINKS}
    PRIVATE $<BUILD_INTERFACE:switchyard_warnings> ${arg_PRIVATE_LINKS})
  switchyard_precompile(${target})
  set_property(GLOBAL APPEND PROPERTY SWITCHYARD_LIBRARIES ${target})
endfunction()

function(switchyard_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINKS" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE switchyard_warnings ${arg_LINKS})
  # -fPIC in place of CMake's -fPIE: a precompiled header is refused under other flags than its own.
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
  target_compile_options(${name} PRIVATE -fPIC)
  switchyard_precompile(${name})
endfunction()

# Tests of FOLDER, and once more for each of ISAS: oneDNN's names of instruction sets, the most that its products may use then.
function(switchyard_test folder)
  cmake_parse_arguments(arg "" "" "SOURCES;ALONE;LINKS;ISAS" ${ARGN})
  set(name ${folder}_test)
  set_source_files_properties(${arg_ALONE} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  switchyard_program(${name} SOURCES ${arg_SOURCES} ${arg_ALONE}
    LINKS switchyard_${folder} ${arg_LINKS} GTest::gmock GTest::gtest_main ${RAPIDCHECK_LIBRARY})
  target_include_directories(${name} SYSTEM PRIVATE ${RAPIDCHECK_INCLUDE})
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "unit;${folder}" TIMEOUT 600
    ENVIRONMENT "OMP_NUM_THREADS=1;RC_PARAMS=seed=1")
  foreach(isa ${arg_ISAS})
    string(TOLOWER ${name}_${isa} limited)
    add_test(NAME ${limited} COMMAND ${name})
    set_tests_properties(${limited} PROPERTIES LABELS "unit;${folder}" TIMEOUT 600
      ENVIRONMENT "OMP_NUM_THREADS=1;RC_PARAMS=seed=1;ONEDNN_MAX_CPU_ISA=${isa}")
  endforeach()
endfunction()
