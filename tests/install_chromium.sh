#!/usr/bin/env bash
# A Chromium for the browser tests, and a font for it to write with: Debian's, else Playwright's own. Does nothing
# where there is one; fails where neither can be had. Never asks: a machine without root goes without.
set -uo pipefail

here() {
  command -v chromium || command -v chromium-browser || command -v google-chrome || python - <<'PYTHON'
import pathlib, sys
from playwright.sync_api import sync_playwright
with sync_playwright() as driver:
    sys.exit(not pathlib.Path(driver.chromium.executable_path).exists())
PYTHON
} >/dev/null 2>&1

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

debian() {
  local quick=(-o Acquire::http::Timeout=20 -o Acquire::Retries=1)
  as_root apt-get "${quick[@]}" -q update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get "${quick[@]}" -q -y --no-install-recommends install \
    chromium fonts-dejavu-core
}

here || debian || python -m playwright install --with-deps chromium </dev/null
here
