"""The least bytes that each room of a step moves: what it must read and write once.

Time over these bytes, beside the rate at which this machine copies, says how far from memory's
limit an operation is. Counted for one device that holds the whole model.
"""

from __future__ import annotations

import math

from megatron_ngpt.config import Config
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.profiling.rooms import BACKWARD

# operation -> tensors that its forward and its backward pass must read or write once
_PASSES = {
    "ResidualStep": (3, 5),  # h, branch, result; gradient, h, branch, two gradients
    "RMSNorm": (2, 3),
    "RotaryQKNorm": (2, 3),
    "Rotary": (2, 2),
    "SwiGLU": (3, 5),
    "SquaredReLU": (2, 3),
    "loss": (1, 2),  # logits; logits and their gradient
}
_OPTIMIZER, _PROJECTION = 7, 3
"""fp32 values a parameter: weight, gradient, two averages read, three of them written; a weight
read for its length, then read and written."""


def least_bytes(config: Config, tokens: int) -> dict[str, float]:
    """Room -> bytes of one step on this many tokens."""
    model, size = config.model, 2 if config.train.dtype == "bf16" else 4
    parameters = sum(math.prod(spec.shape) for spec in parameter_table(model).values())
    hidden, layers = tokens * model.width, model.layers
    heads = tokens * (model.query_width + model.key_width) * layers
    inner = tokens * model.ffn_width * layers
    elements = {
        "ResidualStep": 2 * layers * hidden,
        "RMSNorm": (2 * layers + 1) * hidden,
        "RotaryQKNorm": heads,
        "Rotary": heads,
        "SwiGLU": inner,
        "SquaredReLU": inner,
        "loss": tokens * model.vocab_size,
    }
    found = {"optimizer": 4.0 * _OPTIMIZER, "projection": 4.0 * _PROJECTION}
    found = {room: each * parameters for room, each in found.items()}
    for name, (forward, backward) in _PASSES.items():
        found[name] = float(forward * elements[name] * size)
        found[name + BACKWARD] = float(backward * elements[name] * size)
    return found
