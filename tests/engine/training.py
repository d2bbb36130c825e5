"""Train the same few steps plainly and through the engine, and tell all that can be compared."""

import contextlib
import json
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ngpt.config import Config, EngineConfig, ModelConfig, OptimConfig, TrainConfig
from megatron_ngpt.engine import projection
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.muon import orthogonal
from megatron_ngpt.engine.schedule import learning_rate
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.parallel.apply import table_parameters

# no size divides evenly over 2 to 5 ranks, and key and value (12 elements) leave the last of 5
# ranks without any
ODD = ModelConfig(width=6, layers=2, heads=3, kv_heads=1, head_dim=2, ffn_width=10, vocab_size=17)
ODD_GPT = replace(ODD, architecture="gpt", init_std=0.3)


def config_of(
    stage: int = 1,
    model: ModelConfig = ODD,
    dtype: str = "fp32",
    batch: tuple[int, int] = (4, 4),
    overrides: str = "",
    **optim: Any,
) -> Config:
    """A run of ``batch`` = (global_batch, micro_batch)."""
    optim = {"lr": 0.02, "schedule": "constant", "zero_stage": stage, **optim}
    return Config(
        model=model,
        optim=OptimConfig(**optim),
        train=TrainConfig(
            steps=4, global_batch=batch[0], micro_batch=batch[1], dtype=dtype, seed=3
        ),
        engine=EngineConfig(deepspeed_overrides=overrides),
    )


def some_tokens(
    steps: int = 3, global_batch: int = 60, vocab_size: int = 17, length: int = 8
) -> Tensor:
    """Token ids [steps, global_batch, length + 1], some more frequent than others."""
    generator = torch.Generator().manual_seed(11)
    draw = torch.rand(steps, global_batch, length + 1, generator=generator)
    return (draw.square() * vocab_size).long()


@dataclass
class Record:
    """What one run told, step by step."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    off_sphere: list[float] = field(default_factory=list)
    """Largest | |vector| - 1 | of the fp32 weights after each step."""
    reductions: list[int] = field(default_factory=list)
    """Floats in every all-reduce of the projection, all steps in a row."""
    stale: list[str] = field(default_factory=list)
    """Parameters that were not their master rounded to their dtype after some step."""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    empty: int = 0
    """Parameters of which this rank holds nothing."""
    compiled: bool = False
    """Whether some module runs through torch.compile."""
    start: dict[str, Tensor] = field(default_factory=dict)
    final: dict[str, Tensor] = field(default_factory=dict)


def embedding_axis(name: str) -> int:
    """The dimension that every matrix of nGPT is normalised along, apart from the table."""
    return 0 if name.split(".")[-2] in ("output", "down") else 1


def distance_from_sphere(weights: dict[str, Tensor]) -> float:
    matrices = {n: w for n, w in weights.items() if w.dim() == 2}
    return max(
        float((w.double().norm(dim=embedding_axis(n)) - 1).abs().max()) for n, w in matrices.items()
    )


def documents_of(config: Config, tokens: Tensor) -> Iterator[tuple[int, slice]]:
    """Every document of some sequences: which sequence, and where; the sequence if all are one."""
    for row, ids in enumerate(tokens.tolist()):
        ends = [n + 1 for n, token in enumerate(ids) if token == config.data.eod]
        bounds = [0, *(ends if config.data.document_mask else ()), len(ids)]
        yield from ((row, slice(*pair)) for pair in pairwise(bounds) if pair[0] < pair[1])


def plain_logits(config: Config, model: NGPT, tokens: Tensor) -> Tensor:
    """Logits [B, T, V], each document a sequence of its own."""
    if not config.data.document_mask:
        return model(tokens)
    found = torch.zeros(*tokens.shape, config.model.vocab_size)
    for row, where in documents_of(config, tokens):
        found[row, where] = model(tokens[row, None, where])[0]
    return found


def plain_loss(config: Config, model: NGPT, rows: Tensor) -> Tensor:
    """Mean loss of sequences [B, T + 1] over the targets that are in their token's document."""
    tokens, targets = rows[:, :-1], rows[:, 1:]
    if not config.data.document_mask:
        return model(tokens, targets)
    logits, counted = plain_logits(config, model, tokens), tokens != config.data.eod
    return torch.nn.functional.cross_entropy(logits[counted], targets[counted])


def to_the_sphere(weight: Tensor, axis: int, model: ModelConfig) -> Tensor:
    """Vectors along an axis at length 1, or in groups, or within their slack; worked in fp64."""
    found = []
    for part in weight.double().chunk(model.hyperspheres, axis):
        length, slack = part.norm(dim=axis, keepdim=True), model.sphere_slack
        found.append(part / length * length.clamp(1 - slack, 1 + slack))
    return torch.cat(found, axis).float()


def nugpt_factor(name: str, config: Config) -> float:
    """Table 1 of arXiv 2604.27077 once more, by name; only the width differs from the reference."""
    if config.model.parametrisation == "ngpt":
        return 1.0
    ratio = config.model.width / config.model.reference_width
    if name.startswith("embed"):
        return ratio**-0.5
    if name.startswith("head"):
        return 0.5 * ratio**-0.75
    return ratio**-0.75 if name.endswith("weight") else 1.0


def gate_again(
    adam: torch.optim.AdamW, named: dict[str, Tensor], before: dict[str, Tensor], optim: OptimConfig
) -> None:
    """Undo AdamW's update and make it with the gate of arXiv 2608.01284."""
    for (name, parameter), group in zip(named.items(), adam.param_groups, strict=True):
        state, lr = adam.state[parameter], group["lr"]
        t = state["step"].item()
        m = state["exp_avg"] / (1 - optim.betas[0] ** t)
        d = (state["exp_avg_sq"] / (1 - optim.betas[1] ** t)).sqrt().clamp_min(1e-30)
        gate = (optim.gate * (d / optim.eps).log()).sigmoid()
        parameter.data = before[name] * (1 - lr * group["weight_decay"]) - lr * gate * m / d


def muon_again(
    adam: torch.optim.AdamW,
    named: dict[str, Tensor],
    before: dict[str, Tensor],
    averages: dict[str, Tensor],
    optim: OptimConfig,
) -> None:
    """Undo AdamW's update of blocks' matrices and make Muon's (arXiv 2502.16982)."""
    for (name, parameter), group in zip(named.items(), adam.param_groups, strict=True):
        if not name.startswith("blocks.") or parameter.dim() == 1:
            continue
        lr, gradient, momentum = group["lr"], parameter.grad, optim.momentum
        average = averages.get(name, torch.zeros_like(gradient))
        averages[name] = momentum * average + (1 - momentum) * gradient
        ahead = momentum * averages[name] + (1 - momentum) * gradient
        step = 0.2 * max(gradient.shape) ** 0.5 * orthogonal(ahead, torch.float32)
        parameter.data = before[name] * (1 - lr * group["weight_decay"]) - lr * step


def capped(before: Tensor, after: Tensor, axis: int, cap: float) -> Tensor:
    """Unit vectors after a step, those that turned by more than ``cap`` on the geodesic; fp64."""
    before, after = before.double(), after.double()
    before = before / before.norm(dim=axis, keepdim=True)
    cosine = (before * after).sum(axis, keepdim=True)
    tangent = after - cosine * before
    sine = tangent.norm(dim=axis, keepdim=True)
    turned = math.cos(cap) * before + math.sin(cap) * tangent / sine.clamp_min(1e-30)
    return torch.where(torch.atan2(sine, cosine) > cap, turned, after).float()


def train_plainly(config: Config, tokens: Tensor) -> Record:
    """One process, whole batches, plain autograd, plain AdamW, plain normalisation; all fp32."""
    model, record = NGPT(config.model), Record()
    initialise(model, parameter_table(config.model), config.train.seed)
    named, optim = dict(model.named_parameters()), config.optim
    decay = {1: 0.0, 2: optim.weight_decay}
    groups = [{"params": [p], "weight_decay": decay[p.dim()]} for p in named.values()]
    adam = torch.optim.AdamW(groups, optim.lr, optim.betas, optim.eps, foreach=False)
    factors = [nugpt_factor(name, config) for name in named]
    record.start = {n: p.detach().clone() for n, p in named.items()}
    averages: dict[str, Tensor] = {}
    for step, rows in enumerate(tokens):
        for group, factor in zip(adam.param_groups, factors, strict=True):
            group["lr"] = factor * learning_rate(config, step)
        before = {n: p.detach().clone() for n, p in named.items()}
        loss = plain_loss(config, model, rows)
        loss.backward()
        limit = optim.grad_clip or float("inf")
        record.norms.append(float(torch.nn.utils.clip_grad_norm_(named.values(), limit)))
        record.losses.append(loss.item())
        adam.step()
        if optim.gate != 1:
            gate_again(adam, named, before, optim)
        if optim.is_muon:
            muon_again(adam, named, before, averages, optim)
        adam.zero_grad()
        for name, parameter in named.items() if config.model.is_ngpt else ():
            if parameter.dim() == 2:
                parameter.data = to_the_sphere(parameter.data, embedding_axis(name), config.model)
                if optim.angle_cap and not name.startswith("embed"):
                    axis = embedding_axis(name)
                    cap = optim.angle_cap
                    if optim.angle_cap_schedule == "learning_rate":
                        cap *= learning_rate(config, step) / optim.lr
                    parameter.data = capped(before[name], parameter.data, axis, cap)
    record.final = {n: p.detach() for n, p in named.items()}
    return record


def train_each(mesh: Mesh, configs: dict[Any, Config], tokens: Tensor) -> dict[Any, Record]:
    """Every configuration one after the other on this rank."""
    return {key: train(mesh, config, tokens) for key, config in configs.items()}


def train(mesh: Mesh, config: Config, tokens: Tensor) -> Record:
    """The same steps through the engine."""
    record, shape = Record(), (-1, config.train.micro_batch, tokens.shape[-1])
    with _counted_reductions(record):
        engine = Engine(config, mesh)
        record.start = _weights(engine)
        record.reductions.clear()
        for step, rows in enumerate(tokens):
            mine = rows.chunk(mesh.degrees.dp)[mesh.index("dp")].reshape(shape)
            told = engine.train_step(mine[..., :-1], mine[..., 1:], learning_rate(config, step))
            record.losses.append(told.loss)
            record.norms.append(told.grad_norm)
            record.final = _weights(engine)
            record.off_sphere.append(distance_from_sphere(record.final))
            record.stale += _stale(engine, record.final)
    record.dtypes = {n: p.dtype for n, p in table_parameters(engine.deepspeed.module)}
    modules = engine.deepspeed.module.modules()
    record.compiled = any(module._compiled_call_impl is not None for module in modules)
    record.empty = sum(fragment.length == 0 for fragment in engine.masters.fragments)
    engine.deepspeed.destroy()
    return record


def _weights(engine: Engine) -> dict[str, Tensor]:
    return {name: engine.masters.full_weight(name) for name in engine.table}


def _stale(engine: Engine, masters: dict[str, Tensor]) -> list[str]:
    import deepspeed

    found = []
    for name, parameter in table_parameters(engine.deepspeed.module):
        with deepspeed.zero.GatheredParameters([parameter]):
            if not torch.equal(parameter.data, masters[name].to(parameter.dtype)):
                found.append(name)
    return found


@contextlib.contextmanager
def _counted_reductions(record: Record):
    """Note the size of every all-reduce that the projection asks for."""

    def all_reduce(values: Tensor, group: dist.ProcessGroup) -> None:
        record.reductions.append(values.numel())
        dist.all_reduce(values, group=group)

    projection.dist = types.SimpleNamespace(all_reduce=all_reduce)
    try:
        yield
    finally:
        projection.dist = dist


def write_overrides(folder, **zero) -> str:
    """A file for engine.deepspeed_overrides that sets these keys of zero_optimization."""
    path = folder / "overrides.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    return str(path)
