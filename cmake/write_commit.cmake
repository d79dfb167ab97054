# cmake -DSOURCE=<tree> -DOUT=<header> -P write_commit.cmake: the header with the commit of the tree. Run at every build, and
# written only when it changes, so that nothing is compiled again without a reason.
execute_process(COMMAND git -C "${SOURCE}" describe --always --dirty --abbrev=12
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  set(commit "unknown")
endif()
set(text "#pragma once\ninline constexpr const char* kSwitchyardCommit = \"${commit}\";\n")
set(before "")
if(EXISTS "${OUT}")
  file(READ "${OUT}" before)
endif()
if(NOT before STREQUAL text)
  file(WRITE "${OUT}" "${text}")
endif()
