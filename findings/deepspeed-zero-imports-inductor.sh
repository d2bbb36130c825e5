#!/usr/bin/env bash
# DeepSpeed 0.19.8: every start with ZeRO imports torch's inductor compiler, also with AdamW and no compilation.
#
# To ask whether the optimizer is supported it imports its own Muon, whose functions are decorated with
# torch.compile. Stage 0 does not. The import took 2.2 s of CPU time, most of such a start (2026-11-28,
# torch 2.13.0, Python 3.11, x86-64 Linux, 2 cores). One gloo rank.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 deepspeed==0.19.8
cat >"$work/start.py" <<'PYTHON'
import sys, torch
import deepspeed

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it compiles an extension
deepspeed.init_distributed("gloo")
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters())
for stage in (0, 1):
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}}
    deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    print(f"seen stage {stage}: inductor {'torch._inductor.compile_fx' in sys.modules}")
PYTHON
seen=$(DS_ACCELERATOR=cpu "$python" -m torch.distributed.run --standalone --nproc-per-node 1 \
  "$work/start.py" 2>/dev/null | grep ^seen)
same "seen stage 0: inductor False
seen stage 1: inductor True" "$seen"
