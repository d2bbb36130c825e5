"""Does the best learning rate stay where it is when the model grows? nGPT against nuGPT.

    python -m benchmarks.transfer --json transfer.json --plot transfer.svg
    python -m benchmarks.transfer --widths 64 128 256 512 --steps 2000 --text corpus.txt

Trains a small model on the bytes of a text at every width and seed, with both parametrisations, at
learning rates around the best one, and fits a parabola to find it. The loss is the mean of the last
tenth of the steps. Every learning rate and both parametrisations see the same samples and initial
directions, so their losses differ by less than those of seeds. The head width stays, so the number
of heads grows with the width; nuGPT's reference is the smallest width, where both have the same
initial alpha and s_z. Everything else is nuGPT's for both: eps 1e-16, no weight decay, warm-up or
clipping, cosine to a tenth (arXiv 2604.27077v2).

Told are the best learning rate by width with its standard error over seeds, its drift (octaves per
doubling of the width, the slope of a line for each seed), and what a width gives away that keeps
the smallest width's best learning rate.
Without ``--text`` the text is Python's own help topics, which every installation has.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.optimum import bottom, drift, mean_and_error, walk
from benchmarks.report import facts, table, write_json
from megatron_ngpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from megatron_ngpt.engine.optimizer import build_optimizer, set_learning_rate
from megatron_ngpt.engine.schedule import learning_rate
from megatron_ngpt.extras import require
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import ParameterSpec, parameter_table

HEAD_DIM, LAYERS, SEQ_LEN = 16, 2, 64
BYTES = 256
STARTS = {"ngpt": -5.0, "nugpt": -6.5}
"""Where the search begins at the smallest width, log2 of a learning rate."""


def main(argv: Sequence[str] | None = None) -> int:
    """Search every combination, seed by seed; print a table, write JSON after each search."""
    options = _options(argv)
    text = read_text(options.text)
    settings = {key: getattr(options, key) for key in ("steps", "batch", "per_octave")}
    results = {"benchmark": "transfer", "facts": facts(torch.device("cpu")), **settings}
    known = finished(options.json, settings)
    for seed, name in itertools.product(options.seeds, STARTS):
        for curve in search(name, seed, options, text, known):
            known[name, curve["width"], seed] = curve
            print(f"{name} {curve['width']} seed {seed}: {curve['best']:.2f}", file=sys.stderr)
            write_json(options.json, {**results, "curves": list(known.values())})
    asked = itertools.product(STARTS, sorted(options.widths), options.seeds)
    curves = [known[which] for which in asked]
    print(describe(curves), f"\n{results['facts']}", flush=True)
    if options.plot:
        draw(curves, options.plot)
    return 0


def finished(path: Path | None, settings: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    """Curves by name, width and seed of a run that was interrupted or had fewer widths or seeds."""
    if path is None or not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    if any(before[key] != value for key, value in settings.items()):
        raise ValueError(f"{path} is of a run with other settings than {settings}: remove it")
    for curve in before["curves"]:
        curve["losses"] = {float(x): loss for x, loss in curve["losses"].items()}
    return {(curve["name"], curve["width"], curve["seed"]): curve for curve in before["curves"]}


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help=f"samples of {SEQ_LEN} bytes a step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--per-octave", type=int, default=2, help="learning rates per factor of 2")
    parser.add_argument("--text", type=Path, help="a file, read as bytes")
    parser.add_argument(
        "--json", type=Path, help="write the results here; go on with what is there already"
    )
    parser.add_argument("--plot", type=Path, help="draw the curves here, .svg or .png")
    return parser.parse_args(argv)


def search(
    name: str, seed: int, options: argparse.Namespace, text: Tensor, known: dict[Any, Any]
) -> Iterator[dict[str, Any]]:
    """Losses around the best learning rate for every width, smallest first; each other width's
    search begins at the smallest one's best point."""
    start, widths = STARTS[name], sorted(options.widths)
    for width in widths:

        def loss(x: float, width: int = width) -> float:
            config = configuration(name, width, 2.0**x, options, widths[0], seed)
            losses = list(train(config, text))
            last = losses[-max(1, len(losses) // 10) :]
            return sum(last) / len(last)

        before = known.get((name, width, seed))
        losses = before["losses"] if before else walk(loss, start, options.per_octave)
        if width == widths[0]:
            start = min(losses, key=losses.__getitem__)
        yield {
            "name": name,
            "width": width,
            "seed": seed,
            "losses": losses,
            "best": bottom(losses),
            "given_away": losses[start] - min(losses.values()),
        }


def read_text(path: Path | None) -> Tensor:
    """Bytes as token ids."""
    if path is not None:
        content = path.read_bytes()
    else:
        from pydoc_data.topics import topics

        content = "\n".join(topics[name] for name in sorted(topics)).encode()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()


def configuration(
    name: Any, width: int, lr: float, options: argparse.Namespace, reference: int, seed: int
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
        train=TrainConfig(
            steps=options.steps, global_batch=options.batch, micro_batch=options.batch, seed=seed
        ),
    )


def train(config: Config, text: Tensor) -> Iterator[float]:
    """The loss of every step, on one process."""
    table_ = parameter_table(config.model)
    model = NGPT(config.model)
    initialise(model, table_, config.train.seed)
    optimizer = build_optimizer(model.named_parameters(), table_, config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(config.train.seed)
    for step in range(config.train.steps):
        starts = torch.randint(
            len(text) - SEQ_LEN, (config.train.global_batch, 1), generator=generator
        )
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


def grouped(curves: Sequence[dict[str, Any]], name: str) -> dict[int, list[dict[str, Any]]]:
    """Curves of one parametrisation by width, smallest first, in the order of the seeds."""
    widths = sorted({curve["width"] for curve in curves if curve["name"] == name})
    return {w: [c for c in curves if (c["name"], c["width"]) == (name, w)] for w in widths}


def describe(curves: Sequence[dict[str, Any]]) -> str:
    """A row for each parametrisation and width, then the drift of each parametrisation."""
    rows, drifts = [], []
    for name in STARTS:
        by_width = grouped(curves, name)
        for width, group in by_width.items():
            best, error = mean_and_error([curve["best"] for curve in group])
            loss = mean_and_error([min(curve["losses"].values()) for curve in group])[0]
            lost = mean_and_error([curve["given_away"] for curve in group])[0]
            log2 = f"{best:.2f} ± {error:.2f}"
            rows.append([f"{name} {width}", log2, f"{2**best:.4f}", f"{loss:.3f}", f"{lost:.3f}"])
        slopes = [
            drift(list(by_width), [curve["best"] for curve in seed])
            for seed in zip(*by_width.values(), strict=True)
        ]
        moved, error = mean_and_error(slopes)
        drifts.append(f"{name}: {moved:+.2f} ± {error:.2f} octaves per doubling of the width")
    header = ["", "log2 of the best lr", "best lr", "loss there", "given away by the smallest's lr"]
    return "\n".join([table(header, rows), "", *drifts])


def draw(curves: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss over learning rate, averaged over seeds, a line for each width and a panel for each
    parametrisation; a mark at each seed's best."""
    figure = require("matplotlib.figure", "plot", "--plot").Figure(figsize=(9, 4))
    for axes, name in zip(figure.subplots(1, 2, sharey=True), STARTS, strict=True):
        for width, group in grouped(curves, name).items():
            common = sorted(set.intersection(*(set(curve["losses"]) for curve in group)))
            means = [sum(c["losses"][x] for c in group) / len(group) for x in common]
            (line,) = axes.plot(common, means, label=f"width {width}")
            for curve in group:
                axes.axvline(curve["best"], ymax=0.05, color=line.get_color())
        axes.set(title=name, xlabel="log2 of the learning rate", ylabel="loss, nats a byte")
        axes.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    raise SystemExit(main())
