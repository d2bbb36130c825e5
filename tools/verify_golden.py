"""Replay a training trace of NVIDIA/ngpt and print how far ours is from it.

    python tools/verify_golden.py FILE.safetensors
    torchrun --nproc-per-node 2 tools/verify_golden.py FILE.safetensors --zero_stage 3

The trace holds initial weights, tokens, logits and gradients of step 0 and final weights; FILE.json
beside it holds the configuration and every step's loss and gradient norm. Exit code 1 when a
difference is above its tolerance.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from math import inf, isnan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from megatron_ngpt.config import Config, DataConfig, EngineConfig, OptimConfig, TrainConfig
from megatron_ngpt.engine import zero
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.interop import nvidia
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import finish, pick_device, read_launch, start
from megatron_ngpt.mesh.mesh import Mesh

# a few times what another order of summation moves in the reference itself; the unnormalised
# model is that much more chaotic at these learning rates
TOLERANCES = {
    "ngpt": {"logits": 1e-5, "gradients": 1e-5, "loss": 2e-5, "grad_norm": 2e-5, "weights": 2e-3},
    "gpt": {"logits": 1e-5, "gradients": 1e-5, "loss": 2e-3, "grad_norm": 1e-2, "weights": 2e-3},
}


def main() -> int:
    """Run the trace on every rank; 0 when all differences are within tolerance."""
    options = _options()
    launch = read_launch()
    device = pick_device("auto", launch.local_rank)
    start(launch, device)
    trace = load_file(options.trace)
    facts = json.loads(options.trace.with_suffix(".json").read_text())
    config = _config(facts, trace["tokens"], options.zero_stage, launch.world_size)
    mesh = Mesh.build(Degrees.of(config.parallel, launch.world_size), device)
    found = replay(Engine(config, mesh), trace, facts["steps"])
    return _report(found, TOLERANCES[config.model.architecture], launch.rank)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path, help="NAME.safetensors with NAME.json beside it")
    parser.add_argument("--zero_stage", type=int, default=1, choices=range(4))
    return parser.parse_args()


def _config(facts: dict[str, Any], tokens: Tensor, zero_stage: int, world_size: int) -> Config:
    """Our configuration of the traced run."""
    optimizer = facts["optimizer"]
    batch = tokens.shape[1]
    if batch % world_size:
        raise SystemExit(
            f"the trace has {batch} sequences a step: start a divisor of {batch} ranks"
        )
    return Config(
        model=nvidia.model_config(facts["config"]),
        optim=OptimConfig(
            lr=optimizer["lr"],
            schedule="constant",
            betas=tuple(optimizer["betas"]),
            eps=optimizer["eps"],
            weight_decay=optimizer["weight_decay"],
            grad_clip=optimizer["grad_clip"],
            zero_stage=zero_stage,
        ),
        data=DataConfig(seq_len=tokens.shape[2] - 1),
        train=TrainConfig(
            steps=len(facts["steps"]), global_batch=batch, micro_batch=batch // world_size
        ),
        engine=EngineConfig(attention="sdpa"),
    )


def replay(engine: Engine, trace: dict[str, Tensor], steps: list[dict]) -> dict[str, float]:
    """Largest absolute difference of each kind over this rank's part of the trace."""
    engine.set_weights(nvidia.from_nvidia(_part(trace, "init.")))
    rank, dp = engine.mesh.index("dp"), engine.mesh.degrees.dp
    rows = [step.chunk(dp)[rank].to(engine.mesh.device).long() for step in trace["tokens"]]
    logits = _logits(engine, rows[0])
    found = {"logits": _largest([_distance(logits, trace["logits"].chunk(dp)[rank])])}
    losses, norms = [], []
    for row, step in zip(rows, steps, strict=True):
        loss = engine.mean(engine.backward(row[None, :, :-1], row[None, :, 1:]))
        if "gradients" not in found:
            found["gradients"] = _gradients(engine, _part(trace, "grad."))
        grad_norm = engine.update(engine.config.optim.lr)
        losses.append(abs(loss - step["loss"]))
        norms.append(abs(grad_norm - step["grad_norm"]))
    found |= {"loss": _largest(losses), "grad_norm": _largest(norms)}
    ours = {name: engine.full_weight(name) for name in engine.table}
    final = _part(trace, "final.").items()
    found["weights"] = _largest(_distance(nvidia.stack(name, ours), value) for name, value in final)
    return found


def _largest(distances: Iterable[float]) -> float:
    """Python's max would pass over a distance that is no number; here it counts as infinite."""
    return max(inf if isnan(distance) else distance for distance in distances)


def _part(trace: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in trace.items() if n.startswith(prefix)}


def _distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.cpu().float() - theirs).abs().max())


@torch.no_grad()
def _logits(engine: Engine, rows: Tensor) -> Tensor:
    engine.deepspeed.eval()
    logits: Tensor = engine.deepspeed(rows[:, :-1])
    return logits


def _gradients(engine: Engine, theirs: dict[str, Tensor]) -> float:
    """Largest distance of the gradients that the backward left for the optimizer."""
    parameters = engine.deepspeed.module.named_parameters()
    ours = {name: zero.full_gradient(parameter) for name, parameter in parameters}
    return _largest(_distance(nvidia.stack(name, ours), value) for name, value in theirs.items())


def _report(found: dict[str, float], tolerances: dict[str, float], rank: int) -> int:
    """Print the worst rank's differences; 1 when one is above its tolerance."""
    worst = torch.tensor([found[kind] for kind in tolerances])
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    bad = 0
    for (kind, limit), value in zip(tolerances.items(), worst.tolist(), strict=True):
        good = value <= limit
        bad += not good
        if rank == 0:
            print(f"{kind:10} {value:.2e}  (tolerance {limit:.0e}) {'ok' if good else 'TOO LARGE'}")
    return 1 if bad else 0


if __name__ == "__main__":
    finish(main())
