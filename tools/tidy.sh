#!/usr/bin/env bash
# clang-tidy 19 over our sources (tools/check_tidy.py). Arguments: jobs, then sources (default: all of switchyard/).
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${1:-$(nproc)}
shift || true

# libomp: clang cannot read GCC's omp.h, which torch's headers include.
if ! command -v clang-tidy-19 >/dev/null || ! dpkg -s libomp-19-dev >/dev/null 2>&1; then
  sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get -qq update
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get -qq install -y --no-install-recommends clang-tidy-19 libomp-19-dev >/dev/null
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cmake --preset tidy -Wno-dev >"$log" 2>&1 || { cat "$log"; exit 1; }
cmake --build build/tidy --target generated_sources >"$log" 2>&1 || { cat "$log"; exit 1; }
python3 tools/check_tidy.py --jobs "$jobs" "$@"
