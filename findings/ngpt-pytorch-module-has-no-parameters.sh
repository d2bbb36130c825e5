#!/usr/bin/env bash
# nGPT-pytorch 0.2.16: list(model.parameters()) raises "unhashable type: 'nGPT'".
#
# Its modules get __eq__ and with it lose __hash__, and torch's walk over modules keeps those that it
# has seen in a set. So the model of the README's example cannot be handed to an optimizer. Giving the
# classes torch.nn.Module.__hash__ again is the way out.
# Seen on 2026-11-28 with torch 2.13.0, Python 3.11, x86-64 Linux.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 nGPT-pytorch==0.2.16
seen=$("$python" - <<'PYTHON'
import importlib
import torch

module = importlib.import_module("nGPT_pytorch.nGPT")
model = module.nGPT(num_tokens=64, dim=32, depth=1, heads=2, dim_head=16)
try:
    print(len(list(model.parameters())), "parameters")
except TypeError as error:
    print(error)
for kind in vars(module).values():
    if isinstance(kind, type) and issubclass(kind, torch.nn.Module) and kind.__hash__ is None:
        kind.__hash__ = torch.nn.Module.__hash__
print("with __hash__:", len(list(model.parameters())) > 0)
PYTHON
)
same "unhashable type: 'nGPT'
with __hash__: True" "$seen"
