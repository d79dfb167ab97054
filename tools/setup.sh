#!/usr/bin/env bash
# Everything a bare Debian 12 machine needs: system packages, .venv, PyTorch. Repeats cheaply: what is there is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly torch_version=2.13.0
names() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$1" | awk '{print $1}'; }

missing_packages() {
  local name
  for name in $(names tools/apt_packages.txt); do
    dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || echo "$name"
  done
}

install_system_packages() {
  local missing sudo=()
  missing=$(missing_packages)
  [ -n "$missing" ] || return 0
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  echo "setup: apt packages:" $missing
  "${sudo[@]}" apt-get -qq update
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get -qq install -y --no-install-recommends $missing >/dev/null
}

has_torch() { "$1" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$torch_version')" 2>/dev/null; }

install_python_packages() {
  local stamp=.venv/setup.stamp wanted site=()
  wanted=$(cat tools/python_packages.txt tools/setup.sh | sha256sum)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && has_torch .venv/bin/python; then return 0; fi
  if [ ! -x .venv/bin/python ]; then
    has_torch python3 && site=(--system-site-packages)
    python3 -m venv "${site[@]}" .venv
  fi
  has_torch .venv/bin/python || .venv/bin/pip install --quiet "torch==$torch_version"
  # shellcheck disable=SC2046
  .venv/bin/pip install --quiet $(names tools/python_packages.txt) "torch==$torch_version"
  echo "$wanted" >"$stamp"
}

install_system_packages
install_python_packages
