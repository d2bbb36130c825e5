"""What the model shows, on every topology, against plain arithmetic on whole tensors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ngpt.config import Config
from megatron_ngpt.engine.vitals import Vitals
from megatron_ngpt.engine.vitals.names import kind_of
from megatron_ngpt.engine.vitals.spectra import QUANTILES
from megatron_ngpt.mesh.mesh import Mesh
from tests.distributed import run
from tests.parallel.training import Case, build, config_of, share, some_tokens

ONE = [Case(), Case("gpt"), Case("options")]
FOUR = [
    Case("odd", dp=4, zero=0, micro=6),
    Case("recipe", dp=4, zero=2, micro=6),
    Case("bf16", tp=2, dp=2, zero=1, micro=12),
    Case("odd, 97 ids", tp=2, dp=2, zero=3, micro=12),
    Case("others", tp=2, pp=2, micro=12),
    Case("clipped", pp=2, dp=2, zero=1, micro=6),
]
SCALES = {
    "attention_residual.alpha": ("alpha_attention", "alpha_attention"),
    "mlp_residual.alpha": ("alpha_mlp", "alpha_mlp"),
    "attention.s_qk": ("s_qk", "s_qk"),
    "mlp.s_u": ("s_u", "s_uv"),
    "mlp.s_v": ("s_v", "s_uv"),
    "s_z": ("s_z", "s_z"),
}


def watched(mesh: Mesh, cases: list[Case]) -> list[tuple[dict, dict]]:
    """Two steps of each case: the figures of the second, and what they should be."""
    found = []
    for case in cases:
        config = config_of(case)
        engine = build(mesh, config)
        tokens = some_tokens(2, config.model.vocab_size)
        vitals = Vitals(engine, 2, 2)
        for step, rows in enumerate(tokens, 1):
            vitals.expect(step)
            before = {name: engine.masters.full_weight(name) for name in engine.table}
            engine.backward(*share(engine, rows))
            gradients = {name: engine.masters.full_gradient(name) for name in engine.table}
            figures = vitals.taken(step, engine.update(0.01))
            assert bool(figures) == (step == 2)
        after = {name: engine.masters.full_weight(name) for name in engine.table}
        found.append((figures, expected(config, before, gradients, after)))
        engine.close()
    return found


def rows_of(name: str, values: Tensor) -> Tensor:
    """Vectors as rows, fp64."""
    outwards = name.split(".")[-2] in ("output", "down")
    return (values.T if outwards else values).double()


def expected(
    config: Config,
    before: dict[str, Tensor],
    gradients: dict[str, Tensor],
    after: dict[str, Tensor],
) -> dict[str, Any]:
    """All figures, one whole tensor at a time."""
    angles: dict[str, list] = {}
    condition: dict[str, list] = {}
    squares: dict[str, float] = {}
    for name, values in after.items():
        kind = kind_of(name)[0]
        squares[kind] = squares.get(kind, 0.0) + float(gradients[name].double().square().sum())
        if values.dim() == 2:
            old, new = rows_of(name, before[name]), rows_of(name, values)
            condition.setdefault(kind, []).append(float(torch.linalg.cond(new)))
            step = -(-len(new) // 64)
            old, new = (torch.nn.functional.normalize(v[::step]) for v in (old, new))
            turned = 2 * torch.asin(((new - old).norm(dim=1) / 2).clamp_max(1))
            angles.setdefault(kind, []).append(turned)
    tables = {n: after[f"{n}.weight"] for n in ("embed", "head") if f"{n}.weight" in after}
    return {
        "angle": {
            k: {"mean": float(torch.cat(v).mean()), "max": float(torch.cat(v).max())}
            for k, v in angles.items()
        },
        "gradient": {kind: math.sqrt(square) for kind, square in squares.items()},
        "condition": condition,
        "cosine": {name: cosines(table) for name, table in tables.items()},
        **scales(config, after),
    }


def cosines(table: Tensor) -> dict[str, Any]:
    """All pairs of different rows."""
    unit = torch.nn.functional.normalize(table.double())
    pairs = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    return {"mean": float(pairs.mean()), "std": float(pairs.std(correction=0))} | {
        "quantiles": {str(q): float(pairs.quantile(q)) for q in QUANTILES}
    }


def scales(config: Config, after: dict[str, Tensor]) -> dict[str, Any]:
    """Effective values of the scaling vectors, and what they do to attention's logits."""
    found: dict[str, Any] = {}
    model, logits = config.model, {"mean": [], "max": []}
    if not model.is_ngpt:
        return {"scales": {}}
    for kind, (told, section) in SCALES.items():
        for layer in range(1 if kind == "s_z" else model.layers):
            scale = model.scale_at(section, layer)
            name = "s_z.value" if kind == "s_z" else f"blocks.{layer}.{kind}.value"
            stored = after.get(name, torch.tensor([scale.scale]))
            values = (stored.double() * scale.init / scale.scale).abs()
            entry = found.setdefault(told, {"mean": [], "max": []})
            entry["mean"].append(float(values.mean()))
            entry["max"].append(float(values.max()))
            if kind == "attention.s_qk":
                logits["mean"].append(model.map_dim**0.5 * float(values.square().mean()))
                logits["max"].append(model.map_dim**0.5 * float(values.square().max()))
    return {"scales": found} | ({"logit_scale": logits} if model.qk_norm else {})


def close(found: Any, wanted: Any, at: str = "", **tolerance: float) -> None:
    """Compare two trees of numbers; five digits are written."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), at
        for name, value in wanted.items():
            close(found[name], value, f"{at}.{name}", **tolerance)
    else:
        assert found == pytest.approx(wanted, **tolerance), at


@pytest.fixture(scope="module")
def seen() -> dict[Case, tuple[dict, dict]]:
    told = {}
    for ranks, cases in ((1, ONE), (4, FOUR)):
        everyone = run(ranks, watched, cases)
        for number, case in enumerate(cases):
            told[case] = everyone[0][number]
            # every rank has the same figures
            assert all(rank[number][0] == told[case][0] for rank in everyone), case
    return told


@pytest.mark.parametrize("case", [*ONE, *FOUR], ids=str)
def test_figures_are_those_of_the_whole_model(seen, case):
    figures, wanted = seen[case]
    close(figures["scales"], wanted["scales"], rel=6e-5)
    assert ("logit_scale" in figures) == ("logit_scale" in wanted)
    close(figures.get("logit_scale", {}), wanted.get("logit_scale", {}), rel=6e-5)
    close(figures["angle"], wanted["angle"], rel=1e-3, abs=1e-6)
    close(figures["gradient"], wanted["gradient"], rel=5e-4, abs=1e-9)
    close(figures["condition"], wanted["condition"], rel=6e-5)
    for name, told in figures["cosine"].items():
        close(told, wanted["cosine"][name], name, rel=1e-3, abs=5e-3)
        for which in ("mean", "std"):
            close(told[which], wanted["cosine"][name][which], rel=6e-5, abs=1e-7)
        eigenvalues = list(figures["eigenvalues"][name].values())
        assert len(eigenvalues) == 33
        assert eigenvalues == sorted(eigenvalues)
        ends = (eigenvalues[-1] / eigenvalues[0]) ** 0.5
        assert ends == pytest.approx(wanted["condition"][name][0], rel=1e-4)
    assert figures["memory_bytes"] > 1e8
    if config_of(case).model.is_ngpt and config_of(case).model.on_one_sphere:
        assert 0 < figures["stretch"] < 0.1
        assert figures["unit_error"] < 1e-6
