"""Generating text: tokens per second of CPU time of ours and of the Hugging Face export.

    python -m benchmarks.generation
    python -m benchmarks.generation --preset S --prompt 128 --length 100 --batch 4

Same weights, same prompt of random ids, the likeliest token each time, in turns in one process. The
export's is ``transformers``' ``generate``; both must give the same text. "Reading" is the prompt
alone, up to its next token. Ours also continues ``--batch`` prompts of different lengths together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import interleave, ratio, spread
from benchmarks.report import facts, table, with_spread, write_json
from benchmarks.shape import Shape, add_shape_options, chosen_shape
from megatron_ngpt.hf import NGPTConfig, NGPTForCausalLM
from megatron_ngpt.interop.hf import their_name, to_theirs
from megatron_ngpt.interop.hf_config import published_config
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.ops.fused import pick_operations
from megatron_ngpt.train.generate import generate, generate_all

RATIOS = ("cpu_speed_ratio", "speed_ratio")
CPU = torch.device("cpu")
SHORTER = 3
"""Tokens by which each prompt of a batch is shorter than the one before."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON."""
    options = _parser().parse_args(argv)
    shape = chosen_shape(options)
    results = measure(shape, options.prompt, options.length, options.batch, options.rounds)
    print(describe(results), flush=True)
    write_json(options.json, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shape_options(parser, "S")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--length", type=int, default=100, help="tokens to add")
    parser.add_argument("--batch", type=int, default=4, help="prompts of ours at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser


def measure(shape: Shape, prompt: int, length: int, batch: int, rounds: int) -> dict[str, Any]:
    """Figures of every way, the texts held against each other first."""
    ours, theirs = _models(shape)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, shape.vocab_size, (prompt,), generator=generator)
    prompts = [ids[n * SHORTER % prompt :].tolist() for n in range(batch)]

    def exported(tokens: int) -> list[int]:
        made = theirs.generate(
            ids[None], max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        return made[0, prompt:].tolist()

    def own(tokens: int) -> list[int]:
        return list(generate(ours, ids.tolist(), length=tokens, temperature=0))

    assert own(length) == exported(length), "the export continues the prompt otherwise"
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "ours": (lambda: own(length), length),
        "export": (lambda: exported(length), length),
        "ours, reading": (lambda: own(1), 1),
        "export, reading": (lambda: exported(1), 1),
        f"ours, {batch} prompts": (
            lambda: generate_all(ours, prompts, length=length, temperature=0),
            batch * length,
        ),
    }
    laps = interleave({name: work for name, (work, _) in ways.items()}, 1 + rounds, CPU)
    laps = {name: lap.after(1) for name, lap in laps.items()}
    found = {
        name: {
            "seconds": spread(laps[name].wall),
            "cpu_seconds": spread(laps[name].cpu),
            "tokens_per_cpu_second": made / spread(laps[name].cpu)["median"],
        }
        for name, (_, made) in ways.items()
    }
    for name, against in (("ours", "export"), ("ours, reading", "export, reading")):
        found[name]["cpu_speed_ratio"] = ratio(laps[against].cpu, laps[name].cpu)
        found[name]["speed_ratio"] = ratio(laps[against].wall, laps[name].wall)
    about = {"prompt": prompt, "length": length, "shape": vars(shape)}
    return {"benchmark": "generation", "facts": facts(CPU), **about, "results": found}


def _models(shape: Shape) -> tuple[NGPT, Any]:
    """Ours, and the export's model with its weights."""
    config = shape.config("ngpt", "fp32", 1).model
    ours = NGPT(config, ops=pick_operations("auto", torch.device("cpu")))  # as tools/generate.py
    initialise(ours, parameter_table(config), seed=0)
    theirs = NGPTForCausalLM(NGPTConfig(**published_config(config)))
    own = ours.state_dict()
    theirs.load_state_dict({their_name(n): to_theirs(n, values) for n, values in own.items()})
    return ours.eval(), theirs.eval()


def describe(results: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    header = ["", "tokens per CPU second", "CPU ms", "ms", "speed / export, CPU time", "clock"]
    rows = [
        [
            name,
            f"{found['tokens_per_cpu_second']:,.0f}",
            with_spread(found["cpu_seconds"], 1e3),
            with_spread(found["seconds"], 1e3),
            *(with_spread(found[k], digits=2) for k in RATIOS if k in found),
            *([""] * (2 if RATIOS[0] not in found else 0)),
        ]
        for name, found in results["results"].items()
    ]
    about = {key: results[key] for key in ("prompt", "length", "shape")}
    return "\n".join([table(header, rows), f"{about}", f"{results['facts']}"])


if __name__ == "__main__":
    raise SystemExit(main())
