"""NVIDIA/ngpt's own model as a contestant: ``model.py`` of a checkout that the user has.

Nothing of it is kept here. Two things are arranged from outside. Its ``flash_attn`` becomes torch's
attention, so that it runs without that package and on CPU. And because it names bfloat16 where it
makes its matrices and calls attention, fp32 means reading that word of the source as float32; in
bf16 it is as shipped, under autocast. Optimizer, clipping and the matrices' normalisation after
each step are as in its ``train.py`` under its launcher's settings: AdamW neither fused nor foreach.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.shape import Shape

ROW_MATRICES = ("query", "key", "value", "c_fc")
COLUMN_MATRICES = ("att_c_proj", "mlp_c_proj")
"""Matrices of a block, by the vectors that have length 1 in the paper."""


def load(checkout: Path, dtype: Literal["fp32", "bf16"]) -> ModuleType:
    """Its ``model.py`` as a module.

    Raises:
        ValueError: there is no such file.
    """
    path = checkout / "model.py"
    if not path.is_file():
        raise ValueError(f"--peers {checkout}: no model.py there; give a checkout of NVIDIA/ngpt")
    source = path.read_text(encoding="utf-8")
    if dtype == "fp32":
        source = source.replace("torch.bfloat16", "torch.float32")
    module = ModuleType("nvidia_ngpt_model")
    module.__file__ = str(path)
    stand_in = ModuleType("flash_attn")
    stand_in.flash_attn_func = stand_in.flash_attn_qkvpacked_func = attention  # type: ignore[attr-defined]
    # dataclasses look their module up by name
    with mock.patch.dict(sys.modules, {"flash_attn": stand_in, module.__name__: module}):
        exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def attention(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, **ignored: Any) -> Tensor:
    """Causal attention of [B, T, N, H] by torch's kernel, called like flash-attn's function."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale)
    return out.transpose(1, 2)


def training_step(
    checkout: Path,
    shape: Shape,
    dtype: Literal["fp32", "bf16"],
    device: torch.device,
    learning_rate: float,
    compiled: bool,
) -> tuple[Callable[[Tensor], float], int]:
    """One step on ids [B, T + 1], which returns the loss; and how many parameters there are."""
    its = load(checkout, dtype)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size and its optimizer
        model, optimizer = _model_and_optimizer(its, shape, device, learning_rate)
    forward = torch.compile(model) if compiled else model
    half = dtype == "bf16"

    def step(batch: Tensor) -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            _, loss = forward(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        normalise(model)
        return float(loss.detach())

    return step, sum(p.numel() for p in model.parameters())


def _model_and_optimizer(
    its: ModuleType, shape: Shape, device: torch.device, learning_rate: float
) -> tuple[Any, torch.optim.Optimizer]:
    config = its.GPTConfig(
        block_size=shape.seq_len,
        vocab_size=shape.vocab_size,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        base_scale=shape.width**-0.5,
        use_nGPT=1,
    )
    model = its.GPT(config).to(device)
    normalise(model)
    optimizer = model.configure_optimizers(0.0, learning_rate, (0.9, 0.95), device.type)
    return model, optimizer


@torch.no_grad()
def normalise(model: Any) -> None:
    """Bring every matrix back to unit vectors, in place."""
    _scale(model.transformer.wte.weight, 1)
    _scale(model.lm_head.weight, 1)
    for block in model.transformer.h:
        for name in ROW_MATRICES:
            _scale(getattr(block, name).weight, 1)
        for name in COLUMN_MATRICES:
            _scale(getattr(block, name).weight, 0)


def _scale(weight: Tensor, dim: int) -> None:
    weight.copy_(F.normalize(weight.float(), dim=dim, eps=0.0))
