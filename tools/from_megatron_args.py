"""Megatron's arguments as our YAML: python tools/from_megatron_args.py SCRIPT [--output FILE]"""

from __future__ import annotations

from megatron_ngpt.console import tool
from megatron_ngpt.interop.megatron.command import main

if __name__ == "__main__":
    raise SystemExit(tool(main))
