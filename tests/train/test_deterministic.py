"""train.deterministic: two runs are equal bit by bit."""

from types import SimpleNamespace

import pytest
import torch

from megatron_ngpt.ops import attention
from tests.jobs import forked, words
from tests.tools.commands import tool


def test_two_runs_are_equal(toy_corpus, tmp_path, capsys):
    sections = {"train": {"steps": 3, "deterministic": True}, "checkpoint": {"every": 1}}
    for name in ("one", "other"):
        done = forked(words(toy_corpus, tmp_path / name, **sections))
        assert done.code == 0, done
        assert "train.deterministic: two runs on this machine are equal bit by bit" in done.out
    code = tool("compare_runs").main([str(tmp_path / "one"), str(tmp_path / "other")])
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize("wanted", [False, True])
def test_flash_attn_is_told(monkeypatch, wanted):
    """Its backward adds with atomics unless it is told, whatever torch's own setting."""
    told = []
    flash = SimpleNamespace(flash_attn_func=lambda q, k, v, **how: told.append(how) or q)
    monkeypatch.setattr(attention, "_flash_attn", lambda: flash)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        q = torch.ones(1, 2, 1, 8)
        attention.flash_attention(q, q, q, 1.0)
    finally:
        torch.use_deterministic_algorithms(before)
    assert [how["deterministic"] for how in told] == [wanted]
