"""Fused operations by three roads."""

import pytest

from benchmarks import roads


@pytest.mark.slow
def test_every_operation_by_every_road(capsys, monkeypatch):
    for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "set by the benchmark")
    assert roads.main(["--preset", "toy", "--rounds", "1"]) == 0
    told = capsys.readouterr().out
    assert "| CPU ms | torch | inductor | C++ |" in told
    assert told.count("| SwiGLU") == told.count("| residual step") == 2
