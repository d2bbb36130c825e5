#!/usr/bin/env bash
# torch 2.13.0, torch.distributed.pipelining: with static shapes the example tensors decide about gradients.
#
# PipelineStage(..., input_args=, output_args=) takes example tensors for the shapes between stages. If
# they do not require gradients, which plain examples and meta tensors do not, the last stage sends none
# back and the stage before fails in its backward: an error about its output's gradient, not about the
# examples. With requires_grad=True both stages train. Two gloo ranks, 1F1B.
# Seen on 2026-11-28, Python 3.11, x86-64 Linux.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
cat >"$work/stages.py" <<'PYTHON'
import sys, torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

dist.init_process_group("gloo")
rank, needed = dist.get_rank(), sys.argv[1] == "True"
torch.manual_seed(0)
model, example = torch.nn.Linear(4, 4), torch.zeros(1, 4, requires_grad=needed)
first = torch.zeros(1, 4)
stage = PipelineStage(
    model, rank, 2, torch.device("cpu"), input_args=(example if rank else first,), output_args=(example,)
)
schedule = Schedule1F1B(stage, 2, loss_fn=lambda output, target: (output - target).pow(2).mean())
try:
    if rank:
        schedule.step(target=torch.ones(2, 4), losses=[])
    else:
        schedule.step(torch.randn(2, 4))
except RuntimeError:
    pass
if rank == 0:
    print(f"requires_grad={needed}: first stage has gradients: {model.weight.grad is not None}")
PYTHON
run() { "$python" -m torch.distributed.run --standalone --nproc-per-node 2 "$work/stages.py" "$1" 2>/dev/null; }
seen=$(run True; run False)
same "requires_grad=True: first stage has gradients: True
requires_grad=False: first stage has gradients: False" "$seen"
