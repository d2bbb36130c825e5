r"""What a step costs each contestant of a study, in turns in one process.

    python -m benchmarks.study_steps examples/experiments/speedup_256.yaml \
        --json docs/results/steps/speedup_256.json

With the factor of tokens that the study finds, this says who is ahead by the clock. Ratios are by
CPU time on a CPU, which other work on the machine hardly changes, and by the clock on a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.measure import Laps, interleave, ratio, spread
from benchmarks.report import facts, table, with_spread, write_json
from megatron_ngpt.config import Config, parse_config
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import Launch, pick_device, start
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.study.plan import Contestant, Study, load_study

WARM_UP = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    options = _parser().parse_args(argv)
    study = load_study(options.study, options.variation)
    device = pick_device("auto", 0)
    start(Launch(), device)
    mesh = Mesh.build(Degrees(1, 1, 1, 1), device)
    work = {c.name: _step(config_of(study, c), mesh) for c in study.contestants}
    laps = interleave(work, WARM_UP + options.steps, device)
    results = {
        "benchmark": "study_steps",
        "study": study.name,
        "baseline": study.baseline,
        "facts": facts(device),
        "steps": options.steps,
        "results": compared(study.baseline, laps, device),
    }
    print(describe(results))
    write_json(options.json, results)
    return 0


def config_of(study: Study, contestant: Contestant) -> Config:
    """A contestant's run as pretrain_ngpt.py would have it, without data."""
    run = study.run(contestant, contestant.log2_lr, study.seeds[0], "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(yaml.safe_dump(dict(run.settings)), encoding="utf-8")
        return parse_config(["--config", str(path), "--data.train", "none is read"])


def _step(config: Config, mesh: Mesh) -> Callable[[], object]:
    """One training step on random tokens."""
    train, generator = config.train, torch.Generator().manual_seed(1)
    shape = (train.global_batch // train.micro_batch, train.micro_batch, config.data.seq_len + 1)
    ids = torch.randint(config.model.vocab_size, shape, generator=generator).to(mesh.device)
    return partial(_train, Engine(config, mesh), ids, config.optim.lr)


def _train(engine: Engine, ids: Tensor, lr: float) -> None:
    engine.train_step(ids[..., :-1], ids[..., 1:], lr)


def compared(baseline: str, laps: dict[str, Laps], device: torch.device) -> dict[str, Any]:
    """Seconds of a step and its ratio to the baseline's, round by round."""
    timed = {name: lap.after(WARM_UP) for name, lap in laps.items()}
    seconds = {name: lap.cpu if device.type == "cpu" else lap.wall for name, lap in timed.items()}
    return {
        name: {"seconds": spread(found), "ratio": ratio(found, seconds[baseline])}
        for name, found in seconds.items()
    }


def describe(results: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    rows = [
        [name, with_spread(found["seconds"], 1e3, 0), with_spread(found["ratio"], digits=3)]
        for name, found in results["results"].items()
    ]
    return table(["", "ms a step", f"times {results['baseline']}"], rows) + f"\n{results['facts']}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study", type=Path, help="YAML file, see docs/studies.md")
    parser.add_argument("--variation", default="", help="name of an entry of its overrides")
    parser.add_argument("--steps", type=int, default=10, help="timed [%(default)s]")
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
