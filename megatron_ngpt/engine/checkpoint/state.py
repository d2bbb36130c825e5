"""What of a training run goes into a checkpoint, as boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ngpt.engine.checkpoint.boxes import Boxes
from megatron_ngpt.engine.checkpoint.index import MASTER
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.engine.optimizer import averages


def engine_boxes(engine: Engine) -> dict[str, Boxes]:
    """This rank's masters and the optimizer's averages as views: ``master/NAME``,
    ``exp_avg/NAME`` ..."""
    found: dict[str, Boxes] = {}
    for fragment in engine.masters.fragments:
        flat = {
            MASTER: fragment.flat.data,
            **averages(engine.optimizer, engine.config.optim, fragment),
        }
        for kind, values in flat.items():
            boxes = found.setdefault(f"{kind}/{fragment.spec.name}", Boxes(fragment.spec.shape))
            for box in fragment.rectangles():
                boxes.parts[box.offsets] = box.view(fragment.of(values))
    return found


def set_adam_steps(engine: Engine, steps: int) -> None:
    """Tell Adam how many steps its averages have seen, for its bias correction."""
    for fragment in engine.masters.fragments:
        averages(engine.optimizer, engine.config.optim, fragment)
        state = engine.optimizer.state[fragment.flat]
        if "step" in state:
            state["step"].fill_(float(steps))


def rng_boxes(rank: int, world_size: int) -> dict[str, Boxes]:
    """Every rank's torch random state, this rank's own filled in."""
    found = {f"rng/{other}": Boxes(tuple(_rng_state().shape)) for other in range(world_size)}
    found[f"rng/{rank}"].parts[(0,)] = _rng_state()
    return found


def _rng_state() -> Tensor:
    """CPU generator's state, then the GPU's if there is one; uint8."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def set_rng_state(state: Tensor) -> None:
    """Put back what :func:`rng_boxes` saved."""
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size].clone())
    if torch.cuda.is_available() and state.numel() > size:
        torch.cuda.set_rng_state(state[size:].clone())


def copies(boxes: dict[str, Boxes], spare: dict[str, Boxes] | None) -> dict[str, Boxes]:
    """Copies of all values on the CPU, into ``spare`` (an earlier result) where there is one."""
    if spare is None:
        spare = {
            name: Boxes(b.shape, {o: torch.empty_like(v, device="cpu") for o, v in b.parts.items()})
            for name, b in boxes.items()
        }
    for name, held in boxes.items():
        for offsets, values in held.parts.items():
            spare[name].parts[offsets].copy_(values)
    return spare
