"""Compile a Triton launch for a chip that is not there, and read what became of it.

Triton brings NVIDIA's assembler, so neither a GPU nor CUDA has to be installed.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ngpt.extras import require
from megatron_ngpt.ops.fused.gpu.launch import Launch

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
_ALIGNED = [["tt.divisibility", 16]]
"""What Triton finds out about pointers and numbers at a real launch: multiples of 16."""

SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one program may have, by compute capability times ten.
Source: CUDA C++ Programming Guide, technical specifications per compute capability."""


@dataclass(frozen=True)
class Compiled:
    """What a kernel needs on a chip."""

    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread that did not fit into registers."""
    shared: int
    """Bytes of shared memory of a program."""
    widest_load: int
    """Bytes of a thread's widest load from global memory."""
    widest_store: int
    """The same for stores."""


def compile_for(launch: Launch, capability: int) -> Compiled:
    """Compile it for compute capability ``capability / 10``; its tensors may be on "meta"."""
    triton: Any = require("triton", "triton", "compiling kernels")
    backend: Any = require("triton.backends.compiler", "triton", "compiling kernels")
    names = list(inspect.signature(launch.kernel.fn).parameters)
    signature = dict.fromkeys(names, "constexpr")
    hints = {}
    for number, value in enumerate(launch.arguments):
        signature[names[number]] = _type(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            hints[(number,)] = _ALIGNED
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    made = triton.compile(
        triton.compiler.ASTSource(launch.kernel, signature, constants, hints),
        target=backend.GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.warps, "enable_fp_fusion": True},
    )
    registers, spilled = _usage(made.asm["ptx"], capability)
    return Compiled(
        registers,
        spilled,
        made.metadata.shared,
        _widest("ld.global", made.asm["ptx"]),
        _widest("st.global", made.asm["ptx"]),
    )


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, int):
        return "i32" if value < 2**31 else "i64"
    return "fp32"


def _usage(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, as NVIDIA's assembler tells them."""
    # Triton brings several assemblers and knows which one goes with a chip
    compiler: Any = require("triton.backends.nvidia.compiler", "triton", "compiling kernels")
    program = compiler.get_ptxas(capability).path
    chip = f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        command = [program, "-v", "--regAllocOptLevel=2", chip, source, "-o", f"{source}.cubin"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    used = re.search(r"Used (\d+) registers", told)
    assert spilled is not None, told
    assert used is not None, told
    return int(used[1]), max(int(spilled[1]), int(spilled[2]))


def _widest(instruction: str, ptx: str) -> int:
    """Bytes of the widest access of a kind: ld.global.v4.b32 has 16."""
    found = re.findall(rf"{re.escape(instruction)}[\w.:]*?(?:\.v(\d))?\.b(\d+)", ptx)
    return max((int(vector or 1) * int(bits) // 8 for vector, bits in found), default=0)
