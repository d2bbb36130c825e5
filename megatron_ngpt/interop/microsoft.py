"""Names of microsoft/unilm ``Diff-Transformer/multihead_diffattn.py``, one module, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from megatron_ngpt.config import ModelConfig

_NAMES = {
    "q_proj.weight": "query.weight",
    "k_proj.weight": "key.weight",
    "v_proj.weight": "value.weight",
    "out_proj.weight": "output.weight",
    "lambda_q1": "mix.query_1",
    "lambda_k1": "mix.key_1",
    "lambda_q2": "mix.query_2",
    "lambda_k2": "mix.key_2",
    "subln.weight": "head_norm.gain.value",
}


def from_microsoft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under the names inside our attention module.

    Raises:
        ValueError: a tensor is none of theirs.
    """
    unknown = set(tensors) - set(_NAMES)
    if unknown:
        raise ValueError(f"{sorted(unknown)} are no parameters of multihead_diffattn.py")
    return {_NAMES[name]: tensor for name, tensor in tensors.items()}


def model_config(published: Mapping[str, Any]) -> ModelConfig:
    """Our configuration for their module's arguments; ``depth`` is the number of the block."""
    return ModelConfig(
        architecture="gpt",
        attention="differential",
        width=published["embed_dim"],
        layers=published["depth"] + 1,
        heads=published["num_heads"],
        kv_heads=published["num_kv_heads"] or 0,
    )
