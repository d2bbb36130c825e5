"""Sole home of Triton: the compiler's two names, for the kernels of this folder."""

from __future__ import annotations

from typing import Any

from megatron_ngpt.extras import require

triton: Any = require("triton", "triton", "engine.ops = triton")
tl: Any = require("triton.language", "triton", "engine.ops = triton")
