#!/usr/bin/env bash
# torch 2.13.0: torch._scaled_mm on CPU takes shapes and layouts that it refuses on CUDA.
#
# On CUDA the inner dimension has to be a multiple of 16, the second operand in column-major order, and
# both operands must not be e5m2. The CPU's checks none of it and computes all three, so that a test on
# CPU passes for a matrix product that fails on the first GPU. Seen on 2026-11-28, Python 3.11, x86-64
# Linux; CUDA's conditions are those that its own errors state (not run here, for want of a GPU).
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
seen=$("$python" - <<'PYTHON'
import torch

E4, E5, one = torch.float8_e4m3fn, torch.float8_e5m2, torch.ones(())

def error(inner, kind=E4, row_major=False):
    a, b = torch.randn(16, inner).to(kind), torch.randn(16, inner).to(kind).t()
    b = b.contiguous() if row_major else b
    found = torch._scaled_mm(a, b, one, one, out_dtype=torch.float32)
    return float((found - a.float() @ b.float()).abs().max()) < 1e-3

print("inner dimension 17:", error(17))
print("row-major second operand:", error(32, row_major=True))
print("e5m2 by e5m2:", error(32, E5))
PYTHON
)
same "inner dimension 17: True
row-major second operand: True
e5m2 by e5m2: True" "$seen"
