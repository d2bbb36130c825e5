#!/usr/bin/env bash
# DeepSpeed 0.19.8: zero.Init(dtype=torch.float32) makes bf16 parameters on CPU; without dtype they are fp32.
#
# Asking for a precision gets another one, and not asking gets the one that was asked for. The weights
# lose 16 bits before training begins, and nothing is said. One gloo rank, ZeRO-3, no bf16 in the
# configuration. CPUs for which torch knows fp16 in hardware are likely to differ (not seen). Seen on 2026-11-28 with torch 2.13.0, Python 3.11, x86-64 Linux.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 deepspeed==0.19.8
cat >"$work/init.py" <<'PYTHON'
import torch
import deepspeed

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it compiles an extension
deepspeed.init_distributed("gloo")
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
for asked in ({}, {"dtype": torch.float32}):
    with deepspeed.zero.Init(config_dict_or_path=config, **asked):
        layer = torch.nn.Linear(4, 4)
    print("seen", asked, layer.weight.ds_tensor.dtype)
PYTHON
seen=$(DS_ACCELERATOR=cpu "$python" -m torch.distributed.run --standalone --nproc-per-node 1 \
  "$work/init.py" 2>/dev/null | grep ^seen)
same "seen {} torch.float32
seen {'dtype': torch.float32} torch.bfloat16" "$seen"
