"""Stretched frequencies against their definitions, and against transformers where it is there."""

import math

import pytest
import torch

from megatron_ngpt.ops.rope import Scaling, frequencies, rotary_table

R, THETA, LENGTH = 64, 10000.0, 4096
PLAIN = frequencies(R, THETA)


def test_linear_is_plain_at_positions_between():
    positions = torch.arange(0, 64, 8)
    squeezed = rotary_table(positions, R, THETA, Scaling("linear", 8.0))
    torch.testing.assert_close(squeezed, rotary_table(positions // 8, R, THETA))


def test_ntk_leaves_the_fastest_and_divides_the_slowest():
    found = frequencies(R, THETA, Scaling("ntk", 8.0))
    assert found[0] == PLAIN[0] == 1
    assert float(found[-1]) == pytest.approx(float(PLAIN[-1]) / 8, rel=1e-5)
    assert (found[1:-1] < PLAIN[1:-1]).all()
    assert (found[1:-1] > PLAIN[1:-1] / 8).all()


def test_yarn_leaves_the_fast_and_divides_the_slow():
    ratio = frequencies(R, THETA, Scaling("yarn", 8.0, LENGTH)) / PLAIN
    turns = LENGTH * PLAIN / (2 * math.pi)
    assert (ratio[turns > 32 * THETA ** (2 / R)] == 1).all()
    torch.testing.assert_close(ratio[turns < THETA ** (-2 / R)] * 8, torch.ones(()).expand(8))
    assert (ratio.diff() <= 1e-6).all()


def test_only_yarn_changes_the_temperature():
    assert Scaling("yarn", 8.0, LENGTH).temperature == pytest.approx((0.1 * math.log(8) + 1) ** 2)
    assert {Scaling(kind, 8.0).temperature for kind in ("none", "linear", "ntk")} == {1.0}


@pytest.mark.parametrize(("kind", "factor"), [("linear", 4.0), ("yarn", 4.0), ("yarn", 32.0)])
def test_as_transformers_computes_them(kind, factor):
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    config = pytest.importorskip("transformers").LlamaConfig(
        hidden_size=4 * R, num_attention_heads=4, max_position_embeddings=int(LENGTH * factor)
    )
    config.rope_parameters = {
        "rope_type": kind, "rope_theta": THETA, "factor": factor,
        "original_max_position_embeddings": LENGTH,
    }  # fmt: skip
    theirs, attention = rope.ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    scaling = Scaling(kind, factor, LENGTH)
    torch.testing.assert_close(frequencies(R, THETA, scaling), theirs, rtol=1e-6, atol=0)
    assert scaling.temperature == pytest.approx(attention**2)
