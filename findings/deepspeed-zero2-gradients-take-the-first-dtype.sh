#!/usr/bin/env bash
# DeepSpeed 0.19.8: at ZeRO-2 the order of parameter groups decides whether fp32 gradients keep their precision.
#
# A bf16 matrix and an fp32 vector, one group each. With the matrix first the vector's gradient comes out
# as fp32 whose values are rounded to bf16; with the vector first, and at stage 1 in either order, it
# keeps its bits. Nothing is said. One gloo rank; seen on 2026-11-28, torch 2.13.0, Python 3.11, x86-64.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 deepspeed==0.19.8
cat >"$work/start.py" <<'PYTHON'
import torch
import deepspeed
from deepspeed.utils import safe_get_full_grad

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it compiles an extension
deepspeed.init_distributed("gloo")

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(64, 64).bfloat16())
        self.vector = torch.nn.Parameter(torch.ones(64))

    def forward(self, x):
        return ((x @ self.matrix).float() * self.vector).square().mean()

for first in ("matrix", "vector"):
    for stage in (1, 2):
        torch.manual_seed(0)
        model = Model()
        groups = [{"params": [model.matrix]}, {"params": [model.vector]}]
        optimizer = torch.optim.AdamW(groups if first == "matrix" else groups[::-1])
        config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
        engine.backward(engine(torch.randn(32, 64).bfloat16()))
        grad = safe_get_full_grad(model.vector)
        print(f"seen {first} first, stage {stage}: rounded {torch.equal(grad, grad.bfloat16().float())}")
PYTHON
seen=$(DS_ACCELERATOR=cpu "$python" -m torch.distributed.run --standalone --nproc-per-node 1 \
  "$work/start.py" 2>/dev/null | grep ^seen)
same "seen matrix first, stage 1: rounded False
seen matrix first, stage 2: rounded True
seen vector first, stage 1: rounded False
seen vector first, stage 2: rounded False" "$seen"
