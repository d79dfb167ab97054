#!/usr/bin/env bash
# make test-long: what make test leaves out. Argument: jobs. Goes through everything, then says what failed and what took how
# long; exit code 0 only if every step passed. Expects the release build to exist.
set -uo pipefail
cd "$(dirname "$0")/.."
jobs=${1:-$(nproc)}
summary=()
failures=0

step() {
  local name=$1 begin=$SECONDS result=ok
  shift
  echo "== $name"
  "$@" || { result=FAILED; failures=$((failures + 1)); }
  summary+=("$(printf '%-24s %-6s %4d s' "$name" "$result" $((SECONDS - begin)))")
}

# Preset, then the test programs.
sanitized() {
  local preset=$1 log rc=0
  shift
  log=$(mktemp)
  cmake --preset "$preset" -Wno-dev >"$log" 2>&1 && cmake --build --preset "$preset" -j "$jobs" --target "$@" >"$log" 2>&1 || rc=1
  [ $rc = 0 ] || grep -v '^\[' "$log" | head -60
  rm -f "$log"
  [ $rc = 0 ] || return 1
  ctest --preset "$preset" -j "$jobs" -R "^($(IFS='|'; echo "$*"))$"
}

# Sanitizers end a program at the first finding, so a finding is a failed test.
export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1:check_initialization_order=1
export LSAN_OPTIONS=suppressions=$PWD/tools/lsan_suppressions.txt:print_suppressions=0
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$PWD/tools/tsan_suppressions.txt

folders=(core comm data kernels router balance conform model measure train testbed report cli)
# Those with threads of our own. libtorch and OpenMP are not built for the thread sanitizer, which does not see their barriers;
# every test runs with one OpenMP thread, so that no kernel is threaded here. The same holds for SQLite and MPI.
threaded=(core_test comm_test data_test)

step "clang-tidy" tools/tidy.sh "$jobs"
# Takes its flags from the build that the step above configures.
step "headers compile alone" python3 tools/check_headers.py --jobs "$jobs"
step "address, undefined" sanitized asan "${folders[@]/%/_test}"
step "threads" sanitized tsan "${threaded[@]}"
step "slow tests" ctest --preset release -L slow -j "$jobs"

echo "== summary"
printf '%s\n' "${summary[@]}"
if [ "$failures" -gt 0 ]; then
  echo "test-long: $failures of ${#summary[@]} steps failed"
  exit 1
fi
echo "test-long: all ${#summary[@]} steps passed"
