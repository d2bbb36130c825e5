from itertools import chain, combinations, pairwise

import pytest

from megatron_ngpt.config import Config, DataConfig, ModelConfig, ParallelConfig
from megatron_ngpt.model.part import Part
from megatron_ngpt.model.spec import parameter_table
from megatron_ngpt.parallel.stages import balanced, head_cost, stage_map

HEADS = (0.0, 0.4, 1.0, 2.5, 7.0)


def config_of(layers, **parallel):
    return Config(
        model=ModelConfig(width=8, heads=2, layers=layers, vocab_size=11),
        parallel=ParallelConfig(**parallel),
    )


def busiest(sizes, head):
    return max([*sizes[:-1], sizes[-1] + head])


def every_split(layers, stages):
    """All ways to cut layers in a row into stages of which only the last may be empty."""
    for cuts in combinations(range(1, layers + 1), stages - 1):
        edges = (0, *cuts, layers)
        yield [after - before for before, after in pairwise(edges)]


@pytest.mark.parametrize("head", HEADS)
def test_no_other_split_has_a_less_busy_busiest_stage(head):
    for stages in range(1, 6):
        for layers in range(stages - 1 or 1, 10):
            sizes = balanced(layers, stages, head)
            splits = list(every_split(layers, stages))
            assert sizes in splits, (layers, stages)
            assert busiest(sizes, head) == min(busiest(s, head) for s in splits), (layers, stages)


def test_the_head_counts_as_what_it_costs():
    assert balanced(8, 4, 0.0) == [2, 2, 2, 2]
    assert balanced(8, 4, 2.0) == [3, 3, 2, 0]
    assert balanced(7, 4, 1.0) == [2, 2, 2, 1]


@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
@pytest.mark.parametrize("maps", [1, 3])
@pytest.mark.parametrize("architecture", ["ngpt", "gpt"])
def test_cost_of_the_head_in_blocks(architecture, mlp, maps):
    """Multiplications per token: one per weight of a matrix, and T / 2 keys and values a head."""
    model = ModelConfig(
        architecture=architecture, width=12, layers=1, heads=4, kv_heads=2, head_dim=6,
        ffn_width=40, vocab_size=1000, mlp=mlp, maps=maps,
        attention="ensemble" if maps > 1 else "standard",
    )  # fmt: skip
    sizes = {n: s.shape[0] * s.shape[1] for n, s in parameter_table(model).items() if s.shape[1:]}
    block = sum(size for name, size in sizes.items() if name.startswith("blocks.0."))
    attention = 2 * (64 / 2) * 4 * 6 * maps
    config = Config(model=model, data=DataConfig(seq_len=64))
    assert head_cost(config) == pytest.approx(sizes["head.weight"] / (block + attention))


def test_stages_hold_all_layers_in_order_and_only_the_ends_have_the_rest():
    found = stage_map(config_of(7, pp=3)).parts
    assert [n for part in found for n in part.layers] == list(range(7))
    assert [(part.first, part.last) for part in found] == [
        (True, False), (False, False), (False, True)
    ]  # fmt: skip


def test_a_split_of_ones_own():
    found = stage_map(config_of(6, pp=3, layers_per_stage=(1, 5, 0)))
    assert found.parts == (
        Part(range(1), first=True, last=False),
        Part(range(1, 6), first=False, last=False),
        Part(range(6, 6), first=False, last=True),
    )


@pytest.mark.parametrize(
    ("parallel", "owners"),
    [
        ({"pp": 1}, (0,)),
        ({"pp": 4}, (0, 1, 2, 3)),
        ({"pp": 2, "schedule": "interleaved"}, (0, 1, 0, 1)),
        ({"pp": 2, "schedule": "zero_bubble", "stages_per_rank": 3}, (0, 1, 0, 1, 0, 1)),
        ({"pp": 3, "schedule": "zbv"}, (0, 1, 2, 2, 1, 0)),
    ],
)
def test_owners(parallel, owners):
    found = stage_map(config_of(12, **parallel))
    assert found.owners == owners
    held = [found.of_rank(rank) for rank in range(parallel["pp"])]
    assert sorted(chain(*held)) == list(range(len(owners)))
    assert all(owners[stage] == rank for rank, stages in enumerate(held) for stage in stages)
    assert all(stages == sorted(stages) for stages in held)


@pytest.mark.parametrize("schedule", ["interleaved", "zero_bubble", "zbv"])
def test_one_rank_holds_one_stage_whatever_the_schedule(schedule):
    found = stage_map(config_of(3, pp=1, schedule=schedule))
    assert found.parts == (Part(range(3)),)
    assert found.owners == (0,)


@pytest.mark.parametrize(
    ("layers", "parallel", "sizes"),
    [
        (6, {"pp": 3, "layers_per_stage": (3, 3)}, r"\[3, 3\] must be 3 numbers"),
        (6, {"pp": 2, "layers_per_stage": (3, 4)}, r"\[3, 4\] .* model.layers = 6"),
        (6, {"pp": 3, "layers_per_stage": (6, 0, 0)}, r"\[6, 0, 0\] .* none but the last"),
        (6, {"pp": 2, "layers_per_stage": (7, -1)}, r"\[7, -1\]"),
        (2, {"pp": 4}, "model.layers = 2: change them, or use fewer stages"),
        (2, {"pp": 2, "schedule": "zbv"}, r"4 numbers \(pp \* stages_per_rank\)"),
    ],
)
def test_layers_that_do_not_fill_the_stages_are_refused(layers, parallel, sizes):
    with pytest.raises(ValueError, match=f"layers_per_stage = .*{sizes}"):
        stage_map(config_of(layers, **parallel))
