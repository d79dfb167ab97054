#!/usr/bin/env bash
# make test-long: what make test leaves out. Argument: jobs. Goes through everything, then says what failed.
set -uo pipefail
cd "$(dirname "$0")/.."
jobs=${1:-$(nproc)}
failed=()

step() {
  local name=$1
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

sanitized() {
  local preset=$1
  cmake --preset "$preset" -Wno-dev >/dev/null && cmake --build --preset "$preset" -j "$jobs" || return 1
  ctest --preset "$preset" -L unit -j "$jobs"
}

# libtorch and Python are not built with the sanitizer: leaks are looked for in our own tests only, and not those of
# libraries that live until exit. OpenMP's barriers are invisible to the thread sanitizer, so there is one thread.
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0
export TSAN_OPTIONS=halt_on_error=1:suppressions=$PWD/tools/tsan_suppressions.txt
export OMP_NUM_THREADS=1

step "address sanitizer" sanitized asan
step "thread sanitizer" sanitized tsan
step "headers compile alone" python3 tools/check_headers.py
step "clang-tidy" tools/tidy.sh "$jobs"
step "slow tests" ctest --preset release -L slow -j "$jobs" --no-tests=ignore

if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
echo "test-long: all passed"
