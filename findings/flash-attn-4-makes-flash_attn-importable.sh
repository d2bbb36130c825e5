#!/usr/bin/env bash
# flash-attn-4 4.0.0b36: with it alone "import flash_attn" succeeds, and the package is empty.
#
# The wheel holds flash_attn/cute/ and no flash_attn/__init__.py, so that flash_attn is a namespace
# package. Code that asks whether flash-attn 2 is there by importing it, or by importlib.util.find_spec,
# is told yes, and fails later for want of flash_attn_func. Asking for the function tells them apart.
# Seen on 2026-11-28, Python 3.11; the wheel alone is installed, without what it needs on a GPU.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment --no-deps flash-attn-4==4.0.0b36
seen=$(cd "$work" && "$python" - <<'PYTHON'
import importlib.util
import flash_attn

print("found:", importlib.util.find_spec("flash_attn") is not None)
print("has a file:", flash_attn.__file__ is not None)
print("has flash_attn_func:", hasattr(flash_attn, "flash_attn_func"))
PYTHON
)
same "found: True
has a file: False
has flash_attn_func: False" "$seen"
