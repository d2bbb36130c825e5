"""Does the best learning rate stay where it is when the model grows? nGPT against nuGPT.

    python -m benchmarks.transfer
    python -m benchmarks.transfer --widths 64 128 256 512 --steps 2000 --text corpus.txt

Trains a small model on the bytes of a text at every width and learning rate, with both
parametrisations, from the same seed and on the same samples, and compares the mean loss of the last
tenth of the steps. The head width stays, so the number of heads grows with the width; nuGPT's
reference is the smallest width, where both have the same initial alpha and s_z. Everything else is
nuGPT's: eps 1e-16, no weight decay, warm-up or clipping, cosine to a tenth (arXiv 2604.27077v2).
Without ``--text`` the text is Python's own help topics, which every installation has.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.report import facts, table, write_json
from megatron_ngpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from megatron_ngpt.engine.optimizer import build_optimizer, set_learning_rate
from megatron_ngpt.engine.schedule import learning_rate
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import ParameterSpec, parameter_table

HEAD_DIM, LAYERS, SEQ_LEN, BATCH = 16, 2, 64, 16
BYTES = 256


def main(argv: Sequence[str] | None = None) -> int:
    """Train every combination, print a table for each parametrisation, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--lrs", type=float, nargs="+", default=[2**n / 1024 for n in range(1, 9)])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--text", type=Path, help="a file, read as bytes")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args(argv)
    text, found = read_text(options.text), {}
    for name in ("ngpt", "nugpt"):
        found[name] = [
            [
                sum(final_loss(name, width, lr, options, text, seed) for seed in options.seeds)
                / len(options.seeds)
                for lr in options.lrs
            ]
            for width in options.widths
        ]
    results = {
        "benchmark": "transfer",
        "facts": facts(torch.device("cpu")),
        "widths": options.widths,
        "lrs": options.lrs,
        "steps": options.steps,
        "losses": found,
    }
    print(describe(results), flush=True)
    write_json(options.json, results)
    return 0


def read_text(path: Path | None) -> Tensor:
    """Bytes as token ids."""
    if path is not None:
        content = path.read_bytes()
    else:
        from pydoc_data.topics import topics

        content = "\n".join(topics[name] for name in sorted(topics)).encode()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()


def configuration(
    name: Literal["ngpt", "nugpt"], width: int, lr: float, steps: int, reference: int, seed: int
) -> Config:
    """A run of the sweep."""
    return Config(
        model=ModelConfig(
            parametrisation=name,
            reference_width=reference,
            width=width,
            layers=LAYERS,
            heads=width // HEAD_DIM,
            vocab_size=BYTES,
        ),
        optim=OptimConfig(lr=lr, min_lr=0.1 * lr, eps=1e-16, grad_clip=0.0),
        data=DataConfig(seq_len=SEQ_LEN),
        train=TrainConfig(steps=steps, global_batch=BATCH, micro_batch=BATCH, seed=seed),
    )


def final_loss(
    name: Any, width: int, lr: float, options: argparse.Namespace, text: Tensor, seed: int
) -> float:
    """Mean loss of the last tenth of the steps, in nats a byte."""
    config = configuration(name, width, lr, options.steps, min(options.widths), seed)
    losses = list(train(config, text))
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def train(config: Config, text: Tensor) -> Iterator[float]:
    """The loss of every step, on one process."""
    table_ = parameter_table(config.model)
    model = NGPT(config.model)
    initialise(model, table_, config.train.seed)
    optimizer = build_optimizer(model.named_parameters(), table_, config)
    generator = torch.Generator().manual_seed(config.train.seed)
    for step in range(config.train.steps):
        starts = torch.randint(len(text) - SEQ_LEN, (BATCH, 1), generator=generator)
        rows = text[starts + torch.arange(SEQ_LEN + 1)]
        loss = model(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        set_learning_rate(optimizer, learning_rate(config, step))
        optimizer.step()
        to_the_sphere(model, table_)
        yield loss.item()


@torch.no_grad()
def to_the_sphere(model: NGPT, rows: dict[str, ParameterSpec]) -> None:
    """Every vector back to length 1."""
    for name, parameter in model.named_parameters():
        dim = rows[name].norm_dim
        if dim is not None:
            parameter.div_(parameter.norm(dim=dim, keepdim=True))


def best(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """Learning rate at the bottom of the parabola through the best and its neighbours, in log2."""
    at = min(range(len(losses)), key=lambda n: losses[n])
    if at in (0, len(lrs) - 1):
        return lrs[at]
    x = [math.log2(lr) for lr in lrs[at - 1 : at + 2]]
    left, middle, right = losses[at - 1 : at + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return float(2 ** (x[1] + shift * (x[2] - x[0]) / 2))


def describe(results: dict[str, Any]) -> str:
    """Losses by width and learning rate, and where the best is."""
    lines = []
    header = ["", *(f"lr {lr:.4g}" for lr in results["lrs"]), "best lr"]
    for name, losses in results["losses"].items():
        rows = []
        for width, row in zip(results["widths"], losses, strict=True):
            optimum = best(results["lrs"], row)
            rows.append([f"{name} {width}", *(f"{x:.3f}" for x in row), f"{optimum:.4f}"])
        lines.append(table(header, rows))
    return "\n\n".join([*lines, f"{results['facts']}"])


if __name__ == "__main__":
    raise SystemExit(main())
