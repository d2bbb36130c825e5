"""What every implementation of the operations has in common, and how the one in C++ is built."""

import os
import subprocess
import sys

import pytest
import torch

from megatron_ngpt.ops.fused import REFERENCE, build, pick_operations, why_reference
from megatron_ngpt.ops.fused.cpp import Cpp
from tests.ops.compare import assert_close, normal

CPU = torch.device("cpu")


@pytest.mark.parametrize("eps", [0.0, 0.5])
@pytest.mark.parametrize("width", [3, 33, 257])
def test_unit(width, eps, dtype, ops, device):
    x, grad = (normal(5, width, seed=s).to(dtype) for s in (0, 1))
    true = x.double().requires_grad_()
    exact = true / (true.norm(dim=-1, keepdim=True) + eps)
    exact.backward(grad.double())
    x, grad = x.to(device), grad.to(device)
    assert_close(ops.unit(x, eps), exact.detach(), dtype, "value")
    assert_close(ops.unit_backward(grad, x, eps), true.grad, dtype, "gradient")
    assert not ops.unit(torch.zeros(2, width, device=device), eps).any()


def test_inputs_may_lie_in_memory_anyhow(ops, dtype, device):
    def apart(x):
        return x.to(device, dtype).t().contiguous().t()

    h, branch, grad = (normal(7, 12, seed=s) for s in range(3))
    alpha = normal(24, seed=3)[::2].to(device)
    whole = [x.to(device, dtype) for x in (grad, h, branch)]
    for ours, same in zip(
        ops.residual_step_backward(*map(apart, (grad, h, branch)), alpha, 0.0),
        ops.residual_step_backward(*whole, alpha.clone(), 0.0),
        strict=True,
    ):
        torch.testing.assert_close(ours, same)
    assert torch.equal(
        ops.swiglu(apart(h), apart(branch), alpha, alpha),
        ops.swiglu(*whole[1:], alpha.clone(), alpha.clone()),
    )


@pytest.mark.parametrize("scale", [torch.tensor([0.3]), torch.tensor(0.3)], ids=["[1]", "[]"])
def test_one_number_stands_for_a_whole_vector(scale, ops, device):
    x, y, scale = normal(3, 8).to(device), normal(3, 8, seed=1).to(device), scale.to(device)
    vector = scale.expand(8).clone()
    assert torch.equal(ops.residual_step(x, y, scale, 0.0), ops.residual_step(x, y, vector, 0.0))
    assert torch.equal(ops.swiglu(x, y, scale, scale), ops.swiglu(x, y, vector, vector))
    heads, table = x.view(1, 3, 2, 4), torch.zeros(3, 1, 1, 2, device=device)
    assert torch.equal(
        ops.rotary(heads, table, scale, True, "half"),
        ops.rotary(heads, table, vector.view(2, 4), True, "half"),
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_comes_out_again(bad, ops, device):
    x, y = normal(2, 40).to(device), normal(2, 40, seed=1).to(device)
    x[0, 35] = bad
    one = torch.ones(40, device=device)
    table = torch.ones(1, 2, 1, 20, 2, device=device)
    made = [
        ops.unit(x, 0.0),
        ops.residual_step(x, y, 0.5 * one, 0.0),
        ops.rms_norm(x, one, 1e-6),
        ops.swiglu(x, y, one, one),
        ops.swiglu(y, -x, one, one),
        ops.squared_relu(x, one),
        ops.rotary(x.view(1, 2, 1, 40), table, None, True, "half").view(2, 40),
        torch.stack(ops.softmax_sums(x, None, 40), -1),
    ]
    for number, found in enumerate(made):
        finite = found.isfinite().flatten(1).all(1).tolist()
        # -inf is where the gate closes: u silu(-inf) is nothing times infinity in torch too
        assert finite == [False, True] or (number == 4 and bad == float("inf")), number


def test_results_do_not_depend_on_the_number_of_threads(ops):
    h, branch, grad = (normal(700, 96, seed=s) for s in range(3))
    alpha, found = normal(96, seed=3), []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(ops.residual_step_backward(grad, h, branch, alpha, 0.0))
    torch.set_num_threads(before)
    if ops is REFERENCE:
        pytest.skip("torch's sums are its own affair")
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_other_dtypes_are_the_reference_s(ops):
    h, branch = normal(3, 8).double(), normal(3, 8, seed=1).double()
    alpha = normal(8, seed=2)
    assert torch.equal(
        ops.residual_step(h, branch, alpha, 0.0), REFERENCE.residual_step(h, branch, alpha, 0.0)
    )


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """A machine that never compiled them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Cpp.load.cache_clear()
    yield tmp_path
    Cpp.load.cache_clear()


@pytest.mark.parametrize(
    ("compiler", "words"), [("no-such-compiler", "no-such-compiler"), ("false", "cannot compile")]
)
def test_without_a_working_compiler_the_reference_does_it(cold, monkeypatch, compiler, words):
    monkeypatch.setenv("CXX", compiler)
    assert pick_operations("auto", CPU) is REFERENCE
    assert words in why_reference("auto", CPU)
    with pytest.raises(ValueError, match=r"engine\.ops = cpp: .*engine\.ops to reference"):
        pick_operations("cpp", CPU)


def test_a_library_that_does_not_load_is_told(cold, monkeypatch):
    monkeypatch.setattr(build, "_compile", lambda *all_: all_[-1].write_text("no library"))
    assert pick_operations("auto", CPU) is REFERENCE
    assert "cannot be loaded" in why_reference("auto", CPU)


def test_ranks_that_start_together_compile_once(cold, tmp_path):
    """The compiler is a script that counts its calls and makes what it is asked for."""
    compiler = tmp_path / "cxx"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit\necho . >> {tmp_path}/calls\nsleep 0.3\n'
        'for last; do :; done\necho made > "$last"\n'
    )
    compiler.chmod(0o755)
    program = "from megatron_ngpt.ops.fused.build import built; print(built())"
    command = [sys.executable, "-c", program]
    environment = os.environ | {"CXX": str(compiler)}
    ranks = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {rank.communicate()[0] for rank in ranks}
    assert len(paths) == 1
    assert len((tmp_path / "calls").read_text().split()) == 2, "one call compiles, one links"
