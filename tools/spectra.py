"""What a checkpoint's matrices and scaling vectors look like, layer by layer.

    python tools/spectra.py --checkpoint DIR [--output spectra.json]

Of every matrix the condition number, its largest singular value over its smallest one; of every
scaling vector the mean of its effective value's size. Source: arXiv 2410.01131, figures 5 and 6.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_ngpt.config import load_config
from megatron_ngpt.config.model import LayerScale, ModelConfig
from megatron_ngpt.console import tool
from megatron_ngpt.run.checkpoints import find_checkpoint
from megatron_ngpt.run.durable import DamagedCheckpoint

SCALES = {
    "attention_residual.alpha": "alpha_attention",
    "mlp_residual.alpha": "alpha_mlp",
    "attention.s_qk": "s_qk",
    "mlp.s_u": "s_uv",
    "mlp.s_v": "s_uv",
    "s_z": "s_z",
}
"""Settings by the end of a parameter's name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 done, 2 there is no such checkpoint."""
    options = _parser().parse_args(argv)
    try:
        checkpoint = find_checkpoint(options.checkpoint)
        model = load_config(checkpoint / "config.yaml").model
        found = spectra(checkpoint, model)
    except (ValueError, FileNotFoundError, DamagedCheckpoint) as err:
        print(f"spectra.py: {err}", file=sys.stderr)
        return 2
    kinds = sorted({_kind(name) for name in found if name.startswith("blocks.")})
    print(f"{'':28}" + "".join(f"{f'layer {n}':>11}" for n in range(model.layers)))
    for kind in kinds:
        values = [found.get(f"blocks.{n}.{kind}") for n in range(model.layers)]
        print(f"{kind:28}" + "".join(f"{value:>11.4g}" for value in values))
    for name in (name for name in found if not name.startswith("blocks.")):
        print(f"{name:28}{found[name]:>11.4g}")
    if options.output:
        options.output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def spectra(checkpoint: Path, model: ModelConfig) -> dict[str, float]:
    """By parameter: a matrix's condition number, or the mean size of a scaling vector in use."""
    import torch

    from megatron_ngpt.engine.checkpoint.weights import load_weights
    from megatron_ngpt.model.spec import parameter_table

    table = parameter_table(model)
    found: dict[str, float] = {}
    for name, spec in table.items():
        weight = load_weights(checkpoint, {name: spec.shape})[name]
        if spec.group != "vector":
            values = torch.linalg.svdvals(weight.double())
            found[name] = float(values[0] / values[-1])
        elif scale := _scale(name, model):
            found[name] = float(weight.abs().mean()) * abs(scale.init / scale.scale)
    return found


def _kind(name: str) -> str:
    return name.split(".", 2)[2]


def _scale(name: str, model: ModelConfig) -> LayerScale | None:
    own = name.removesuffix(".value")
    layer, kind = (int(own.split(".")[1]), _kind(own)) if own.startswith("blocks.") else (0, own)
    return model.scale_at(SCALES[kind], layer) if kind in SCALES else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint, or run folder")
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    return parser


if __name__ == "__main__":
    raise SystemExit(tool(main))
