#!/usr/bin/env bash
# screenshot_report.sh RUN_OR_TESTBED_FOLDER... : renders a report of these runs to docs/figures/report.png, for the README.
# SWITCHYARD: the program (build/release/switchyard). SECTION: what the picture begins with (g0-balance). OUT: the file.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly program=${SWITCHYARD:-build/release/switchyard} section=${SECTION:-g0-balance} out=${OUT:-docs/figures/report.png}
readonly width=1240 height=1180 limit=$((300 * 1024))

if [ $# -eq 0 ]; then
  echo "usage: tools/screenshot_report.sh RUN_OR_TESTBED_FOLDER..." >&2
  exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$program" report "$@" --out "$work/report.html" >/dev/null
mkdir -p "$(dirname "$out")"
.venv/bin/python - "$work/report.html" "$section" "$work/report.png" $width $height <<'PYTHON'
import base64
import pathlib
import sys

sys.path.insert(0, "tests/python")
from browser import Browser, Page

html, section, picture, width, height = sys.argv[1:]
browser = Browser()
try:
    page = Page(browser, pathlib.Path(html), width=int(width), height=int(height))
    page.run("document.documentElement.style.scrollBehavior = 'auto'")
    if not page.run(f"Boolean(document.getElementById('{section}'))"):
        sys.exit(f"the report has no section '{section}'")
    page.run(f"document.getElementById('{section}').scrollIntoView()")
    data = page.command("Page.captureScreenshot", format="png", optimizeForSpeed=False)["data"]
    pathlib.Path(picture).write_bytes(base64.b64decode(data))
    if page.complaints():
        sys.exit("the report complained: " + "; ".join(page.complaints()))
finally:
    browser.close()
PYTHON
size=$(stat -c %s "$work/report.png")
if [ "$size" -gt $limit ]; then
  echo "screenshot_report: the picture has $size bytes, more than $limit; choose another SECTION" >&2
  exit 1
fi
cp "$work/report.png" "$out"
echo "$out: $size bytes"
