"""torch's AdamW without torch's compiler."""

from __future__ import annotations

from inspect import unwrap
from typing import TYPE_CHECKING

import torch

_Optimizer = torch.optim.Optimizer


class Uncompiled(_Optimizer):
    """Methods of torch's optimizers as they are written.

    torch wraps them to keep its compiler out of them, and for that imports it: 0.8 s of CPU time of
    every start. Nothing here compiles an optimizer.
    """

    if not TYPE_CHECKING:
        add_param_group = unwrap(_Optimizer.add_param_group)
        zero_grad = unwrap(_Optimizer.zero_grad)
        state_dict = unwrap(_Optimizer.state_dict)
        load_state_dict = unwrap(_Optimizer.load_state_dict)


class AdamW(Uncompiled, torch.optim.AdamW):
    """``torch.optim.AdamW``, the same in every value."""

    if not TYPE_CHECKING:
        step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
