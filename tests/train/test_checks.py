"""Checks of a running engine: silent when all is well, and what they say when it is not."""

import math

import pytest
import torch

from megatron_ngpt.config import parse_config
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.parallel.apply import table_parameters
from megatron_ngpt.run.failed import ReplicasDiffer
from megatron_ngpt.train import checks
from megatron_ngpt.train.checks import check
from tests.distributed import CPU, run
from tests.estimate.measuring import some_batch
from tests.jobs import forked, metrics, train_on, words

# heads and inner width divide by two
SHAPE = {"width": 28, "heads": 2, "kv_heads": 2, "ffn_width": 38}
ULP = 2.0**-24


def _engine(mesh, case: dict) -> Engine:
    sections = {"model": SHAPE | case.get("model", {}), "parallel": case.get("parallel", {})}
    sections["optim"] = {"zero_stage": case["stage"]}
    sections["train"] = {"dtype": case.get("dtype", "fp32")}
    config = parse_config(words("no corpus is read", "nowhere", **sections))
    degrees = Degrees.of(config.parallel, mesh.degrees.dp)
    engine = Engine(config, Mesh.build(degrees, CPU))
    batch = some_batch(config, degrees.dp)
    for _ in range(2):
        engine.train_step(batch[..., :-1], batch[..., 1:], 0.01)
    return engine


HEALTHY = [{"stage": stage, "dtype": dtype} for stage in range(4) for dtype in ("fp32", "bf16")]
HEALTHY += [
    {"stage": 0, "parallel": {"tp": 2}},
    {"stage": 1, "parallel": {"tp": 2}, "dtype": "bf16"},
    {"stage": 3, "parallel": {"tp": 2}},
    {"stage": 1, "parallel": {"pp": 2}},
    {"stage": 1, "model": {"architecture": "gpt"}},
    {"stage": 1, "model": {"architecture": "gpt"}, "parallel": {"tp": 2}},
]


def _check_each(mesh, cases):
    return [check(_engine(mesh, case)) for case in cases]


def test_nothing_is_found_where_nothing_is_wrong():
    by_rank = run(2, _check_each, HEALTHY)
    assert by_rank[0] == by_rank[1]
    for case, found in zip(HEALTHY, by_rank[0], strict=True):
        if "model" in case:
            assert found == {}
        else:
            # a rounded length and the rounding of each component
            assert 0 < found["unit_error"] <= 4 * ULP, case


@pytest.mark.slow
def test_nor_on_every_axis_at_once():
    cases = [{"stage": 1, "parallel": {"tp": 2, "pp": 2}, "dtype": "bf16"}]
    by_rank = run(8, _check_each, cases)
    assert all(rank == by_rank[0] for rank in by_rank)
    assert 0 < by_rank[0][0]["unit_error"] <= 4 * ULP


def _spoil(mesh, case: dict, name: str, rank: int):
    """What every rank says when one value of one parameter changes on one rank."""
    engine = _engine(mesh, case)
    if mesh.rank == rank:
        if engine.config.optim.zero_stage == 3:
            values = next(f.master for f in engine.masters.fragments if f.spec.name == name)
        else:
            values = dict(table_parameters(engine.deepspeed.module))[name].data
        values.view(-1)[-1] += 2.0**-6
    try:
        check(engine)
    except ReplicasDiffer as err:
        return str(err).splitlines()[1:]
    return []


ALPHA, MATRIX = "blocks.1.mlp_residual.alpha.value", "blocks.0.mlp.up.weight"


@pytest.mark.parametrize(
    ("world_size", "case", "name", "rank", "said"),
    [
        # of two, nobody knows which
        (2, {"stage": 0}, MATRIX, 1, "on every one of the dp group [0, 1]"),
        (2, {"stage": 3, "parallel": {"tp": 2}}, ALPHA, 1, "on every one of the tp group [0, 1]"),
        (3, {"stage": 1, "dtype": "bf16"}, MATRIX, 1, "on rank 1 of the dp group [0, 1, 2]"),
        (3, {"stage": 2}, ALPHA, 2, "on rank 2 of the dp group [0, 1, 2]"),
    ],
)
def test_one_value_on_one_rank(world_size, case, name, rank, said):
    by_rank = run(world_size, _spoil, case, name, rank)
    assert by_rank == [[f"  {name} {said}"]] * world_size


@pytest.mark.slow
def test_what_differs_in_one_group_is_told_by_all():
    """A replicated vector on one of four ranks differs along both of its axes."""
    case = {"stage": 1, "parallel": {"tp": 2}}
    said = [
        f"  {ALPHA} on every one of the dp group [1, 3]",
        f"  {ALPHA} on every one of the tp group [2, 3]",
    ]
    assert run(4, _spoil, case, ALPHA, 3) == [said] * 4
    # a matrix is split along tp: only dp holds it twice
    said = [f"  {MATRIX} on every one of the dp group [0, 2]"]
    assert run(4, _spoil, case, MATRIX, 2) == [said] * 4


def _stretch(mesh, case: dict):
    """One component of one unit vector grows on whichever rank holds it."""
    engine = _engine(mesh, case)
    before = check(engine)["unit_error"]
    for fragment in engine.masters.fragments:
        if fragment.spec.name == MATRIX and fragment.start == 0 and fragment.length:
            fragment.master[0] += 0.25 * fragment.master[0].sign()
    return before, check(engine)["unit_error"], engine.masters.full_weight(MATRIX)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_vector_that_is_not_unit_is_measured(stage):
    """It does not end the run: the next step's projection mends it."""
    for before, after, weight in run(2, _stretch, {"stage": stage}):
        length = float(weight[0].double().norm())
        assert before <= 4 * ULP
        assert after == pytest.approx(abs(length - 1), rel=1e-4)
        assert after > 0.01


def test_any_changed_bit_changes_the_hash():
    values = torch.randn(100)
    for number in (torch.float32, torch.bfloat16):
        same = values.to(number)
        other = same.clone()
        other[57] = torch.nextafter(other[57], torch.tensor(math.inf, dtype=number))
        assert checks._hash(same) != checks._hash(other)
        assert checks._hash(same) == checks._hash(same.clone())
    assert checks._hash(torch.zeros(3)) != checks._hash(torch.tensor([0.0, -0.0, 0.0]))


def _train_and_spoil(mesh, arguments):
    """A run in which rank 1's copy of a parameter changes after step 3."""
    real = Engine.train_step

    def step(engine, *batch):
        result = real(engine, *batch)
        step.count += 1
        if step.count == 3 and mesh.rank == 1:
            dict(table_parameters(engine.deepspeed.module))[ALPHA].data[0] += 1.0
        return result

    step.count = 0
    Engine.train_step = step
    try:
        train_on(mesh, arguments)
    except ReplicasDiffer as err:
        return str(err)
    finally:
        Engine.train_step = real
    return ""


def test_a_run_ends_before_it_saves_what_is_wrong(toy_corpus, tmp_path):
    sections = {"train": {"check_every": 2}, "optim": {"zero_stage": 0}}
    sections["checkpoint"] = {"every": 2, "asynchronous": False}
    arguments = words(toy_corpus, tmp_path, **sections)
    for said in run(2, _train_and_spoil, arguments):
        assert ALPHA in said
        assert "resume from a checkpoint before it" in said
    assert [record["step"] for record in metrics(tmp_path)] == [1, 2, 3]
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert saved == ["step_00000002"]


def test_the_metrics_have_the_error_of_every_check(toy_corpus, tmp_path):
    done = forked(words(toy_corpus, tmp_path, train={"check_every": 3}))
    assert done.code == 0, done
    checked = [r["step"] for r in metrics(tmp_path) if "unit_error" in r]
    assert checked == [3, 6]
    assert all(r["unit_error"] <= 4 * ULP for r in metrics(tmp_path) if "unit_error" in r)


def test_never(toy_corpus, tmp_path):
    done = forked(words(toy_corpus, tmp_path, train={"check_every": 0}))
    assert done.code == 0, done
    assert not any("unit_error" in record for record in metrics(tmp_path))
