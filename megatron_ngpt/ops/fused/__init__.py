"""Every operation of the model that is no product of matrices: one interface, several speeds."""

from __future__ import annotations

import torch

from megatron_ngpt.ops.fused.build import NotBuilt
from megatron_ngpt.ops.fused.cpp import Cpp
from megatron_ngpt.ops.fused.interface import Operations
from megatron_ngpt.ops.fused.reference import REFERENCE

__all__ = ["REFERENCE", "Operations", "pick_operations", "why_reference"]


def pick_operations(wanted: str, device: torch.device) -> Operations:
    """The implementation behind ``engine.ops`` = auto, reference, cpp or triton.

    auto takes cpp on a CPU, and the reference where that cannot be had. On a GPU it takes the
    reference, too: no GPU has run the kernels yet.

    Raises:
        ValueError: cpp or triton was asked for where it cannot run.
        ModuleNotFoundError: triton was asked for and is not installed.
    """
    if wanted == "triton":
        return _triton(device)
    if wanted == "reference" or (wanted == "auto" and device.type != "cpu"):
        return REFERENCE
    if device.type != "cpu":
        raise ValueError(
            f"engine.ops = {wanted} runs on CPUs, not on {device.type}: set engine.ops to auto"
        )
    try:
        return Cpp.load()
    except NotBuilt as err:
        if wanted == "auto":
            return REFERENCE
        raise ValueError(f"engine.ops = {wanted}: {err}; or set engine.ops to reference") from err


def _triton(device: torch.device) -> Operations:
    if device.type != "cuda":
        raise ValueError(
            f"engine.ops = triton runs on CUDA devices, not on {device.type}: set it to auto"
        )
    from megatron_ngpt.ops.fused.gpu.operations import TritonOperations

    return TritonOperations()


def why_reference(wanted: str, device: torch.device) -> str:
    """Why ``auto`` has to do with the reference on a CPU; empty where it does not."""
    if wanted != "auto" or device.type != "cpu":
        return ""
    try:
        Cpp.load()
    except NotBuilt as err:
        return str(err)
    return ""
