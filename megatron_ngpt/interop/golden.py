"""Somebody else's nGPT replayed, for ``tools/verify_golden.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from math import inf, isnan
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from megatron_ngpt.config import (
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.interop import hf, hf_config, microsoft, ngpt_pytorch, nvidia
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import pick_device, read_launch, start
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.attention import build_attention
from megatron_ngpt.ops.attention import sdpa_attention
from megatron_ngpt.ops.rope import rotary_table
from megatron_ngpt.parallel.plan import check_topology

# a few times what another order of summation moves in the reference itself; the unnormalised
# model is that much more chaotic at these learning rates
TOLERANCES = {
    "ngpt": {"logits": 1e-5, "gradients": 1e-5, "loss": 2e-5, "grad_norm": 2e-5, "weights": 2e-3},
    "gpt": {"logits": 1e-5, "gradients": 1e-5, "loss": 2e-3, "grad_norm": 1e-2, "weights": 2e-3},
    "forward": {"logits": 1e-5, "greedy": 0.0},
    "module": {"output": 1e-5, "gradients": 1e-5},
}


Stage = Literal[0, 1, 2, 3]


def verify(options: argparse.Namespace) -> int:
    """Run the trace on every rank; 0 when all differences are within tolerance."""
    launch = read_launch()
    device = pick_device("auto", launch.local_rank)
    start(launch, device)
    trace = load_file(options.trace)
    facts = json.loads(options.trace.with_suffix(".json").read_text())
    if "embed_dim" in facts:
        return _report(module(trace, facts), TOLERANCES["module"], launch.rank)
    parallel = ParallelConfig(tp=options.tp, pp=options.pp, schedule=options.schedule)
    degrees = Degrees.of(parallel, launch.world_size)
    trains = "steps" in facts
    if trains:
        config = _config(facts, trace["tokens"], options.zero_stage, parallel, degrees.dp)
    else:
        config = _forward_config(facts, trace, options.zero_stage, parallel, degrees.dp)
    check_topology(config, degrees)
    engine = Engine(config, Mesh.build(degrees, device))
    found = replay(engine, trace, facts["steps"]) if trains else forward(engine, trace, facts)
    tolerances = TOLERANCES[config.model.architecture if trains else "forward"]
    return _report(found, tolerances, launch.rank)


def _config(
    facts: dict[str, Any], tokens: Tensor, zero_stage: Stage, parallel: ParallelConfig, dp: int
) -> Config:
    """Our configuration of the traced run."""
    optimizer = facts["optimizer"]
    batch = tokens.shape[1]
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
        parallel=parallel,
        data=DataConfig(seq_len=tokens.shape[2] - 1),
        train=TrainConfig(
            steps=len(facts["steps"]),
            global_batch=batch,
            micro_batch=1 if parallel.pp > 1 else max(1, batch // dp),
        ),
        engine=EngineConfig(attention="sdpa"),
    )


def _forward_config(
    facts: dict[str, Any], trace: dict[str, Tensor], zero_stage: Stage, parallel: ParallelConfig,
    dp: int,
) -> Config:  # fmt: skip
    """Our configuration of a traced forward pass; every data-parallel rank does all of it."""
    batch = len(trace["input_ids"])
    return Config(
        model=_forward_model(facts, trace),
        optim=OptimConfig(zero_stage=zero_stage),
        parallel=parallel,
        data=DataConfig(seq_len=_padded(trace["input_ids"], parallel.tp).shape[1]),
        train=TrainConfig(global_batch=batch * dp, micro_batch=1 if parallel.pp > 1 else batch),
        engine=EngineConfig(attention="sdpa"),
    )


def _forward_model(facts: dict[str, Any], trace: dict[str, Tensor]) -> ModelConfig:
    if "package" in facts:
        return _ngpt_pytorch(facts, trace).model
    return hf_config.model_config(facts)


def _ngpt_pytorch(facts: dict[str, Any], trace: dict[str, Tensor]) -> ngpt_pytorch.Published:
    given = {name: value for name, value in facts.items() if name in ngpt_pytorch.ARGUMENTS}
    return ngpt_pytorch.Published(_part(trace, "weights."), given)


def module(trace: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, float]:
    """Largest difference of the output and of the input's gradient, relative to its largest."""
    model = microsoft.model_config(facts)
    attention = build_attention(model, sdpa_attention, facts["depth"])
    attention.load_state_dict(microsoft.from_microsoft(_part(trace, "weights.")))
    x = trace["x"].requires_grad_()
    y = attention(x, rotary_table(torch.arange(x.shape[1]), model.rotary_dim, model.rope_theta))
    (gradient,) = torch.autograd.grad(y.square().mean(), x)
    off = _distance(gradient, trace["dx"]) / float(trace["dx"].abs().max())
    return {"output": _largest([_distance(y, trace["y"])]), "gradients": _largest([off])}


def forward(engine: Engine, trace: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, float]:
    """Largest difference of the logits; how many tokens we would have chosen otherwise."""
    if "package" in facts:
        published = _ngpt_pytorch(facts, trace)
        engine.masters.set_weights({name: published.load(name) for name in published.names})
    else:
        engine.masters.set_weights(hf.from_hf(_part(trace, "weights.")))
    logits = _whole_logits(engine, trace["input_ids"])
    found = {"logits": 0.0 if logits is None else _largest([_distance(logits, trace["logits"])])}
    if "greedy" not in trace:
        return found | {"greedy": 0.0}
    # what follows every prefix of a greedy continuation is the continuation's next token
    logits, ids = _whole_logits(engine, trace["greedy"]), trace["greedy"][:, 1:]
    if logits is None:
        return found | {"greedy": 0.0}
    made = 16  # the trace continues prompts by so many tokens
    differs = logits[:, :-1].argmax(-1).cpu() != ids
    return found | {"greedy": float(differs[:, -made:].sum())}


def _whole_logits(engine: Engine, ids: Tensor) -> Tensor | None:
    padded = _padded(ids, engine.mesh.degrees.tp).to(engine.mesh.device)
    logits = engine.logits(padded)
    return None if logits is None else logits[:, : ids.shape[1]]


def _padded(ids: Tensor, tp: int) -> Tensor:
    """With zeros at the end, which no earlier token sees, to a length that tp ranks can share."""
    return torch.nn.functional.pad(ids, (0, -ids.shape[1] % tp))


def replay(engine: Engine, trace: dict[str, Tensor], steps: list[dict]) -> dict[str, float]:
    """Largest absolute difference of each kind over this rank's part of the trace."""
    engine.masters.set_weights(nvidia.from_nvidia(_part(trace, "init.")))
    rank, dp = engine.mesh.index("dp"), engine.mesh.degrees.dp
    rows = [step.chunk(dp)[rank].to(engine.mesh.device).long() for step in trace["tokens"]]
    found = {"logits": _logits(engine, rows[0], trace["logits"].chunk(dp)[rank])}
    losses, norms = [], []
    for row, step in zip(rows, steps, strict=True):
        micro = row.unflatten(0, (-1, engine.config.train.micro_batch))
        loss = engine.mean(engine.backward(micro[..., :-1], micro[..., 1:]))
        if "gradients" not in found:
            found["gradients"] = _gradients(engine, _part(trace, "grad."))
        grad_norm = engine.update(engine.config.optim.lr)
        losses.append(abs(loss - step["loss"]))
        norms.append(abs(grad_norm - step["grad_norm"]))
    found |= {"loss": _largest(losses), "grad_norm": _largest(norms)}
    ours = {name: engine.masters.full_weight(name) for name in engine.table}
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


def _logits(engine: Engine, rows: Tensor, theirs: Tensor) -> float:
    """Largest distance of the logits, micro-batch by micro-batch; 0 on ranks that have none."""
    micro = rows[:, :-1].split(engine.config.train.micro_batch)
    ours = [engine.logits(tokens) for tokens in micro]
    found = [logits for logits in ours if logits is not None]
    return _largest([_distance(torch.cat(found), theirs)]) if found else 0.0


def _gradients(engine: Engine, theirs: dict[str, Tensor]) -> float:
    """Largest distance of the gradients that the backward left for the optimizer."""
    ours = {name: engine.masters.full_gradient(name) for name in engine.table}
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
