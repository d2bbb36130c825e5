"""A bit that flips in a normalised weight between two steps is found and named, whichever it is."""

from dataclasses import replace

import pytest
import torch

from megatron_ngpt.config import EngineConfig
from megatron_ngpt.engine.engine import Engine
from tests.distributed import run
from tests.engine.training import ODD, config_of, some_tokens

GROUPS = replace(ODD, hyperspheres=2, sphere_slack=0.01)
CASES = {
    "direct": (1, config_of(batch=(4, 4))),
    "direct, torch": (1, replace(config_of(batch=(4, 4)), engine=EngineConfig(ops="reference"))),
    "capped": (1, config_of(batch=(4, 4), angle_cap=0.1)),
    "bf16, groups": (1, config_of(model=GROUPS, dtype="bf16", batch=(4, 4))),
    **{f"zero {n}": (2, config_of(n, batch=(4, 2))) for n in range(4)},
    "zero 3, bf16, torch": (
        2,
        replace(config_of(3, dtype="bf16", batch=(4, 2)), engine=EngineConfig(ops="reference")),
    ),
}


def flip(values: torch.Tensor, at: int, bit: int) -> None:
    """In place; ``values`` are flat fp32."""
    values.view(torch.int32)[at] ^= -(2**31) if bit == 31 else 1 << bit


def vector_of(fragment, at: int) -> str:
    """How an element of a fragment is named, from the shape alone."""
    width = fragment.shard.shape[1]
    number = divmod(fragment.start + at, width)[1 - fragment.spec.norm_dim]
    number += fragment.shard.origin[1 - fragment.spec.norm_dim]
    return f"{fragment.spec.name}, {('row', 'column')[1 - fragment.spec.norm_dim]} {number}"


def _flips(mesh, config, count: int) -> list[tuple[list[str], list[str]]]:
    """(told, expected) of steps before which one bit flips on one rank, or none does."""
    engine, told = Engine(config, mesh), []
    inputs = some_tokens(1, 4)[0].chunk(mesh.degrees.dp)[mesh.rank]
    inputs = inputs.reshape(-1, config.train.micro_batch, inputs.shape[1])
    random = torch.Generator().manual_seed(5)
    pieces = [f for f in engine.masters.fragments if f.spec.norm_dim is not None and f.length]
    for number in range(count):
        guilty, bit = number % mesh.degrees.dp, 31 - number * 7 % 32
        fragment = pieces[int(torch.randint(len(pieces), (), generator=random))]
        at, expected = int(torch.randint(fragment.length, (), generator=random)), []
        kept = fragment.master.clone()
        if guilty == mesh.rank and number % 5:
            flip(fragment.master, at, bit)
            expected = [vector_of(fragment, at)]
        if number % 2:
            engine.masters.look_for_flips()  # as before a save
        engine.backward(inputs[..., :-1], inputs[..., 1:])
        engine.update(0.02)
        told.append((list(engine.masters.flipped), expected))
        if number % 5:
            fragment.master.copy_(kept)  # a weight of 1e38 would be no start for what follows
            engine.masters.changed()
        engine.masters.flipped.clear()
    return told


def _every_case(mesh, names: list[str], count: int) -> dict:
    return {name: _flips(mesh, CASES[name][1], count) for name in names}


FEW = ("direct", "direct, torch", "zero 1", "zero 3")


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_flip_is_named_and_nothing_else(world, many):
    names = [name for name, (ranks, _) in CASES.items() if ranks == world]
    names = [name for name in names if many or name in FEW]
    for told in run(world, _every_case, names, 96 if many else 16):
        for name, found in told.items():
            assert [one for one, _ in found] == [expected for _, expected in found], name


def _loose(mesh) -> list[str]:
    config = config_of(batch=(4, 4))
    engine = Engine(replace(config, train=replace(config.train, check_bits=False)), mesh)
    engine.masters.look_for_flips()
    return list(engine.masters.checksums)


def test_it_can_be_turned_off():
    assert run(1, _loose) == [[]]
