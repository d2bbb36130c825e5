"""Cost of every kind of attention against standard attention: operations, parameters, memory, time.

    python -m benchmarks.kinds
    python -m benchmarks.kinds --preset 124m --dtype bf16 --device cuda

Forward and backward of a whole model on one device, contestants in turn. All have the width, layers
and feed-forward of the shape; those of several maps have half as many heads, each twice as wide, as
in arXiv 2410.05258. Memory is what forward keeps for backward, bytes a token and block, parameters
apart. Operations are counted as in benchmarks/shape.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Laps, interleave, ratio
from benchmarks.report import facts, table, with_spread, write_json
from benchmarks.shape import Shape, add_shape_options, chosen_shape, flops_per_token
from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_count, parameter_table
from megatron_ngpt.ops.attention import pick_attention

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KINDS: dict[str, dict[str, Any]] = {
    "standard": {},
    "differential": {"attention": "differential"},
    "ensemble of 3": {"attention": "ensemble", "maps": 3},
    "ensemble of 5": {"attention": "ensemble", "maps": 5},
}
WARM_UP = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every kind under nGPT and GPT, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_shape_options(parser, "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="timed; default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args(argv)
    shape, device = chosen_shape(options), torch.device(options.device)
    runs = [
        run
        for architecture in ("ngpt", "gpt")
        for run in measure(architecture, shape, DTYPES[options.dtype], device, options.steps)
    ]
    results = {"benchmark": "kinds", "facts": facts(device), "shape": vars(shape), "runs": runs}
    print(describe(results), flush=True)
    write_json(options.json, results)
    return 0


def models(architecture: Any, shape: Shape) -> dict[str, ModelConfig]:
    """The configurations that are compared."""
    base = shape.config(architecture, "fp32", 0).model
    derived = {"kv_heads": 0, "head_dim": 0, "maps": 0, "map_dim": 0, "head_norm_eps": 0.0}
    half = derived | {"heads": max(1, shape.heads // 2)}
    return {name: replace(base, **half | kind) if kind else base for name, kind in KINDS.items()}


def measure(
    architecture: str, shape: Shape, dtype: torch.dtype, device: torch.device, steps: int
) -> list[dict[str, Any]]:
    """One result for each kind; times relative to standard attention's, round by round."""
    tokens = torch.randint(shape.vocab_size, (shape.micro_batch, shape.seq_len), device=device)
    configs = models(architecture, shape)
    built = {name: _build(model, dtype, device) for name, model in configs.items()}
    work = {name: partial(_step, model, tokens) for name, model in built.items()}
    laps = interleave(work, WARM_UP + steps, device)
    timed = {name: lap.after(WARM_UP) for name, lap in laps.items()}
    return [
        _result(architecture, name, configs[name], shape, built[name], tokens, timed)
        for name in configs
    ]


def _build(model: ModelConfig, dtype: torch.dtype, device: torch.device) -> NGPT:
    with torch.device(device):
        built = NGPT(model, dtype, pick_attention("auto", device, dtype))
    initialise(built, parameter_table(model), seed=1)
    return built


def _step(model: NGPT, tokens: Tensor) -> None:
    model.zero_grad()
    model(tokens, tokens).backward()


def _result(
    architecture: str,
    name: str,
    config: ModelConfig,
    shape: Shape,
    model: NGPT,
    tokens: Tensor,
    timed: dict[str, Laps],
) -> dict[str, Any]:
    one_layer = _build(replace(config, layers=1), model.embed.dtype, tokens.device)
    blocks = kept_bytes(model, tokens) - kept_bytes(one_layer, tokens)
    return {
        "architecture": architecture,
        "kind": name,
        "parameters": parameter_count(config),
        "flops_per_token": flops_per_token(config, shape.seq_len),
        "kept_bytes": blocks / ((config.layers - 1) * shape.tokens),
        "time_ratio": ratio(timed[name].wall, timed["standard"].wall),
        "cpu_ratio": ratio(timed[name].cpu, timed["standard"].cpu),
    }


def kept_bytes(model: NGPT, tokens: Tensor) -> int:
    """Bytes that a forward pass keeps for its backward, parameters apart."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, _same):
        model(tokens, tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _same(tensor: Tensor) -> Tensor:
    return tensor


def describe(results: dict[str, Any]) -> str:
    """The table, and what it was measured on."""
    header = ["", "parameters", "operations a token", "kept, bytes a token and block"]
    header += ["time / standard", "by CPU time"]
    rows = [
        [
            f"{run['architecture']} {run['kind']}",
            f"{run['parameters']:,}",
            f"{run['flops_per_token']:,.0f}",
            f"{run['kept_bytes']:,.0f}",
            with_spread(run["time_ratio"], digits=2),
            with_spread(run["cpu_ratio"], digits=2),
        ]
        for run in results["runs"]
    ]
    return "\n".join([table(header, rows), f"{results['shape']}", f"{results['facts']}"])


if __name__ == "__main__":
    raise SystemExit(main())
