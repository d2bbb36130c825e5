"""Model shapes that are measured, and the arithmetic they cost."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from megatron_ngpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from megatron_ngpt.config import check as check_config
from megatron_ngpt.model.spec import parameter_table

DENSE_BF16_PEAKS = {"H100": 989e12, "H200": 989e12}
"""Floating-point operations a second without sparsity, SXM boards, by a part of the device name."""


@dataclass(frozen=True)
class Shape:
    """What one step works on; the feed-forward is 4 * width wide, as in the paper."""

    width: int
    layers: int
    heads: int
    vocab_size: int
    seq_len: int
    micro_batch: int

    @property
    def tokens(self) -> int:
        """Tokens one rank trains on in one step."""
        return self.micro_batch * self.seq_len

    def config(
        self,
        architecture: Literal["ngpt", "gpt"],
        dtype: Literal["fp32", "bf16"],
        zero_stage: Literal[0, 1, 2, 3],
        dp: int = 1,
        compile: bool = False,
    ) -> Config:
        """Training configuration of this shape, one micro-batch a step and rank."""
        config = Config(
            model=ModelConfig(
                architecture=architecture,
                width=self.width,
                layers=self.layers,
                heads=self.heads,
                vocab_size=self.vocab_size,
            ),
            optim=OptimConfig(
                zero_stage=zero_stage,
                schedule="constant",
                weight_decay=0.0 if architecture == "ngpt" else 0.1,
            ),
            data=DataConfig(seq_len=self.seq_len),
            train=TrainConfig(
                global_batch=self.micro_batch * dp,
                micro_batch=self.micro_batch,
                dtype=dtype,
                compile=compile,
            ),
        )
        check_config(config)
        return config


_MIDDLE = Shape(width=256, layers=4, heads=4, vocab_size=8192, seq_len=256, micro_batch=4)
PRESETS = {
    "toy": Shape(width=64, layers=2, heads=4, vocab_size=512, seq_len=64, micro_batch=2),
    # small, middle, large, and a large vocabulary: what docs/performance.md compares on CPU
    "S": Shape(width=128, layers=4, heads=4, vocab_size=2048, seq_len=256, micro_batch=4),
    "M": _MIDDLE,
    "cpu": _MIDDLE,
    "L": Shape(width=512, layers=8, heads=8, vocab_size=8192, seq_len=512, micro_batch=4),
    "V": Shape(width=128, layers=2, heads=4, vocab_size=65536, seq_len=256, micro_batch=4),
    # GPT-2 small's layers, width, heads and (padded) vocabulary
    "124m": Shape(width=768, layers=12, heads=12, vocab_size=50304, seq_len=1024, micro_batch=32),
    # the paper's 0.5B model and vocabulary
    "0.5b": Shape(width=1024, layers=24, heads=16, vocab_size=32000, seq_len=1024, micro_batch=16),
}


def add_shape_options(parser: argparse.ArgumentParser, preset: str, several: bool = False) -> None:
    """``--preset``, of one or several, and one option per field of :class:`Shape` over it."""
    about = f"default: {preset}"
    if several:
        parser.add_argument("--preset", choices=PRESETS, nargs="+", help=about)
    else:
        parser.add_argument("--preset", choices=PRESETS, default=preset, help=about)
    for field in dataclasses.fields(Shape):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=int, help=f"{field.name} instead of the preset's")


def chosen_shape(options: argparse.Namespace) -> Shape:
    """The preset with the options that were given put over it."""
    return _with_options(options.preset, options)


def chosen_shapes(options: argparse.Namespace, otherwise: Sequence[str]) -> dict[str, Shape]:
    """The same for each of several presets; ``otherwise`` are those where none was given."""
    return {name: _with_options(name, options) for name in options.preset or otherwise}


def _with_options(preset: str, options: argparse.Namespace) -> Shape:
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Shape)}
    over = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(PRESETS[preset], **over)


def matmul_parameters(model: ModelConfig) -> int:
    """Weights that multiply every token: all matrices but the embedding table, a lookup,
    unless it is the head also."""
    rows = parameter_table(model).values()
    groups = ("matrix", "head", *(["embedding"] if model.tied_embedding else []))
    return sum(math.prod(s.shape) for s in rows if s.group in groups)


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Operations of forward and backward: ``6 * N + 6 * L * T * M * heads * head_dim``.

    N is :func:`matmul_parameters`, M the maps of a head. Attention is counted causal: a token sees
    T / 2 others on average, which is half of the usual ``12 * L * T * D``. Norms, scales, softmax,
    the optimizer and anything computed twice are not counted.
    """
    attention = 6 * model.layers * seq_len * model.maps * model.output_width
    return 6.0 * matmul_parameters(model) + attention


def dense_peak(device: torch.device, dtype: str) -> float | None:
    """Dense peak of a device in operations a second, None where it is not known."""
    if device.type != "cuda" or dtype != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in DENSE_BF16_PEAKS.items() if part in name), None)
