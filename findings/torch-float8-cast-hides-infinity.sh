#!/usr/bin/env bash
# torch 2.13.0: .to(torch.float8_e4m3fn) turns infinity into 448, its largest finite value.
#
# e4m3fn has no infinity but has NaN, and the cast keeps NaN, so that one would expect an overflow to
# stay visible. It saturates: 449 and infinity both become 448 and the check for non-finite values that
# comes after the cast finds nothing. e5m2 in the same release keeps infinity and overflows to it.
# Seen on 2026-11-28 on CPU, Python 3.11, x86-64 Linux.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
seen=$("$python" - <<'PYTHON'
import torch

values = torch.tensor([448.0, 449.0, 1e4, float("inf"), float("nan")])
for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
    print(kind, (values * (1 if kind == torch.float8_e4m3fn else 128)).to(kind).float().tolist())
PYTHON
)
same "torch.float8_e4m3fn [448.0, 448.0, 448.0, 448.0, nan]
torch.float8_e5m2 [57344.0, 57344.0, inf, inf, nan]" "$seen"
