"""The plain nGPT is ours written otherwise, and the search for the longest sequence ends."""

import json

import pytest
import torch

from benchmarks import longest
from benchmarks.longest import MODELS, WAYS, Try, main, report
from benchmarks.plain import PlainNGPT, plain_step
from megatron_ngpt.config import check
from megatron_ngpt.model.ngpt import NGPT

TOY = MODELS["toy"]


@pytest.fixture
def pair():
    """Our model and the plain one with the same weights."""
    ours, plain = NGPT(TOY), PlainNGPT(TOY)
    torch.manual_seed(0)
    for parameter in ours.parameters():
        torch.nn.init.uniform_(parameter, 0.05, 0.15)
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter)
    plain.load_state_dict(ours.state_dict())
    plain.normalize()
    ours.load_state_dict(plain.state_dict())
    return ours, plain


def test_the_plain_model_computes_what_ours_computes(pair):
    ours, plain = pair
    tokens = torch.randint(TOY.vocab_size, (2, 33))
    losses = [model(tokens[:, :-1], tokens[:, 1:]) for model in pair]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)
    for loss in losses:
        loss.backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(
            theirs[name].grad / scale, parameter.grad / scale, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("bf16", [False, True])
def test_the_plain_model_trains_on_the_sphere(pair, bf16):
    _, plain = pair
    step, batch = plain_step(plain, bf16), torch.randint(TOY.vocab_size, (2, 33))
    losses = [step(batch) for _ in range(5)]
    assert losses[-1] < losses[0]
    lengths = plain.blocks["0"].mlp.down.weight.norm(dim=0)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.mark.parametrize("model", MODELS)
def test_every_way_is_a_possible_run(model):
    for way in WAYS:
        check(Try(way, model, 8192, "bf16").config)


def test_the_search_doubles_and_then_tries_half_as_much_again(monkeypatch):
    tried = []

    def on_ranks(ranks, device, measure, job):
        tried.append(job.length)
        if job.length > 6000:
            raise longest.ProcessRaisedException("CUDA out of memory", 0, 0)
        return {"seconds": 1.0, "peak": 1 << 30, "rate": float(job.length), "mfu": 0.5}

    monkeypatch.setattr(longest, "on_ranks", on_ranks)
    found = longest.longest(Try("all", "toy", 1024, "bf16"), 1 << 20, "cuda")
    assert tried == [1024, 2048, 4096, 8192, 6144]
    assert [m["length"] for m in found] == [1024, 2048, 4096]
    tried.clear()
    assert longest.longest(Try("all", "toy", 8192, "bf16"), 1 << 20, "cuda") == []
    assert tried == [8192]


def test_the_table_compares_at_a_length_that_all_reach():
    def found(way, length, rate):
        return {"way": way, "length": length, "rate": rate, "mfu": 0.25, "peak": 3 << 29}

    lines = report([found("plain", 8, 1), found("all", 8, 2), found("all", 16, 3)]).splitlines()
    assert lines[2].startswith("| plain | 8 | 1 tokens/s | MFU 25.0% | 1.50 GiB | 8 | 1 tokens/s")
    assert lines[3].startswith("| all | 16 | 3 tokens/s | MFU 25.0% | 1.50 GiB | 8 | 2 tokens/s")


@pytest.mark.slow
def test_at_toy_size_on_a_cpu(tmp_path, capsys):
    path = tmp_path / "longest.json"
    words = ["--device", "cpu", "--model", "toy", "--start", "512", "--limit", "1k"]
    assert main([*words, "--dtype", "fp32", "--json", str(path)]) == 0
    measured = json.loads(path.read_text())["measured"]
    peaks = {m["way"]: m["peak"] for m in measured if m["length"] == 1024}
    assert peaks.keys() == WAYS.keys()
    assert peaks["all"] < peaks["plain"]
    assert "1,024" in capsys.readouterr().out
