"""What the benchmarks print and write; never how fast anything is."""

import json
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import gpu_suite, nvidia
from benchmarks.measure import interleave, ratio, spread, with_peak_memory
from benchmarks.report import table
from benchmarks.shape import PRESETS, Shape, dense_peak, flops_per_token, matmul_parameters
from megatron_ngpt.extras import available

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def run(*words: str) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_contestants_take_turns():
    order: list[str] = []
    laps = interleave({n: lambda n=n: order.append(n) for n in "abc"}, 2, CPU)
    assert "".join(order) == "abcabc"
    assert [(n, len(lap.wall), len(lap.cpu)) for n, lap in laps.items()] == [
        ("a", 2, 2),
        ("b", 2, 2),
        ("c", 2, 2),
    ]


def test_spread_and_ratio():
    assert spread([4.0]) == {"median": 4.0, "q25": 4.0, "q75": 4.0}
    assert spread([1.0, 2.0, 3.0, 4.0, 9.0]) == {"median": 3.0, "q25": 2.0, "q75": 4.0}
    # round by round: a machine twice as slow in the second round changes nothing
    assert ratio([3.0, 6.0], [1.0, 2.0]) == {"median": 3.0, "q25": 3.0, "q75": 3.0}


def test_peak_memory_counts_what_lives_at_once():
    def work():
        kept = torch.ones(1 << 20)  # 4 MiB, lives on
        torch.ones(1 << 21).sum()  # 8 MiB, gone
        torch.ones(1 << 20).sum()
        return kept

    kept, peak = with_peak_memory(work, CPU)
    assert kept.numel() == 1 << 20
    assert 12 << 20 <= peak < (12 << 20) + 4096


def test_the_papers_half_billion_model_has_its_parameters_and_operations():
    shape = PRESETS["0.5b"]
    model = shape.config("ngpt", "bf16", 1).model
    # 468.2M with both tables of 32000 rows (arXiv 2410.01131, table 1), the embedding left out here
    blocks = 24 * 16 * 1024**2
    assert matmul_parameters(model) == blocks + 32000 * 1024
    attention = 6 * 24 * 4096 * 1024
    assert flops_per_token(model, 4096) == 6 * (blocks + 32000 * 1024) + attention
    assert dense_peak(CPU, "bf16") is None


def test_table_is_markdown():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


TOY_STEP = ("benchmarks.step", "--preset", "toy", "--device", "cpu")


def test_step_measures_every_contestant(tmp_path):
    result = tmp_path / "new" / "step.json"
    printed = run(sys.executable, "-m", *TOY_STEP, "--steps", "8", "--json", str(result))
    written = json.loads(result.read_text())
    found, left_out = written["results"], written["left_out"]
    ours, theirs = {"ngpt", "gpt", "plain"}, {"package", "package-default"}
    assert set(found) == (ours | theirs if available("nGPT_pytorch") else ours)
    assert set(left_out) == (ours | theirs) - set(found)
    for name, contestant in found.items():
        assert f"| {name} |" in printed
        assert len(contestant["losses"]) == 2 + 8  # warm-up and timed
        assert contestant["losses"][-1] < contestant["losses"][0]
        # the package counts the angles of its rotary embedding as parameters
        assert contestant["parameters"] == pytest.approx(found["ngpt"]["parameters"], rel=0.01)
        median = contestant["seconds"]["median"]
        assert contestant["tokens_per_second"] == pytest.approx(2 * 64 / median)
        assert contestant["peak_bytes"] > 16 * contestant["parameters"]  # weights, gradients, Adam
        assert contestant["mfu"] is None
        assert contestant["times_products"]["median"] > 1 > contestant["limit_share"]["median"] > 0
    # the plain loop trains the same module on the same batches from the same weights
    assert found["plain"]["losses"] == pytest.approx(found["ngpt"]["losses"], rel=1e-4)
    # per layer four matrices of 64 by 64 and three of 64 by 256, and a head of 512 rows
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 256) + 512 * 64
    assert written["limit"]["product_flops"] == 6 * 2 * 64 * matrices
    assert found["ngpt"]["speed_ratio"] == {"median": 1.0, "q25": 1.0, "q75": 1.0}
    assert written["shape"] == vars(PRESETS["toy"])
    assert written["facts"]["torch"] == torch.__version__


def test_step_leaves_out_what_fails_and_takes_turns_with_another_checkout(tmp_path):
    broken = tmp_path / "peer"
    broken.mkdir()
    (broken / "model.py").write_text("import flash_attn\nraise OSError('no such model')\n")
    result = tmp_path / "step.json"
    peers = ("--peers", str(broken), "--contestants", "ngpt", "nvidia", "--before", str(ROOT))
    few = ("--preset", "toy", "--steps", "2", "--layers", "1", "--json", str(result))
    run(sys.executable, "-m", *TOY_STEP[:1], *few, *peers)
    written = json.loads(result.read_text())
    assert written["left_out"] == {"nvidia": "it failed: OSError: no such model"}
    now, before = written["results"]["ngpt"], written["results"]["ngpt-before"]
    assert before["losses"] == pytest.approx(now["losses"], rel=1e-4)  # the same code
    assert before["peak_bytes"] == pytest.approx(now["peak_bytes"], rel=0.05)


PEER = """
from dataclasses import dataclass
import torch
from torch import nn
from flash_attn import flash_attn_func

@dataclass
class GPTConfig:
    block_size: int = 8
    vocab_size: int = 8
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 8
    base_scale: float = 1.0
    use_nGPT: int = 0

class Block(nn.Module):
    def __init__(self, D):
        super().__init__()
        for name in ("query", "key", "value", "att_c_proj", "c_fc", "mlp_c_proj"):
            setattr(self, name, nn.Linear(D, D, bias=False, dtype=torch.bfloat16))

    def forward(self, h):
        q, k, v = (f(h)[:, :, None] for f in (self.query, self.key, self.value))
        out = flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=1.0, causal=True)
        return h + self.mlp_c_proj(self.c_fc(self.att_c_proj(out[:, :, 0])))

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        D = config.n_embd
        self.transformer = nn.ModuleDict(
            dict(wte=nn.Embedding(config.vocab_size, D), h=nn.ModuleList([Block(D)]))
        )
        self.lm_head = nn.Linear(D, config.vocab_size, bias=False)

    def forward(self, idx, targets):
        h = self.transformer.h[0](self.transformer.wte(idx))
        return None, nn.functional.cross_entropy(self.lm_head(h).flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)
"""


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_peer_of_nvidias_names_trains(tmp_path, dtype):
    (tmp_path / "model.py").write_text(PEER)
    shape = Shape(width=16, layers=1, heads=1, vocab_size=32, seq_len=8, micro_batch=2)
    step, parameters = nvidia.training_step(tmp_path, shape, dtype, CPU, 1e-2, compiled=False)
    assert parameters == 6 * 16**2 + 2 * 32 * 16
    batch = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(1))
    losses = [step(batch) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.1
    assert (
        nvidia.load(tmp_path, dtype).Block(4).key.weight.dtype
        == {
            "fp32": torch.float32,
            "bf16": torch.bfloat16,
        }[dtype]
    )


def test_peer_columns_and_rows_have_length_one():
    module = types.ModuleType("peer")
    with mock.patch.dict(sys.modules, {"flash_attn": mock.Mock(), "peer": module}):
        exec(PEER.replace("bfloat16", "float32"), module.__dict__)
        model = module.GPT(module.GPTConfig())
    nvidia.normalise(model)
    block, ones = model.transformer.h[0], torch.ones(8)
    for matrix in (block.query, block.c_fc, model.lm_head, model.transformer.wte):
        torch.testing.assert_close(matrix.weight.norm(dim=1), ones)
    for matrix in (block.att_c_proj, block.mlp_c_proj):
        torch.testing.assert_close(matrix.weight.norm(dim=0), ones)


def test_a_folder_without_the_peers_model_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"--peers .*no model.py"):
        nvidia.load(tmp_path, "fp32")


@pytest.mark.slow
def test_step_under_torchrun_and_compiled(tmp_path):
    result = tmp_path / "step.json"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    names = ("--contestants", "gpt-compiled", "package", "--zero-stage", "3", "--steps", "2")
    run(sys.executable, *torchrun, *TOY_STEP, *names, "--json", str(result))
    written = json.loads(result.read_text())
    assert written["ranks"] == 2
    assert set(written["results"]) == {"gpt-compiled"}
    assert "one process" in written["left_out"]["package"]


@pytest.mark.slow
def test_generation_against_the_export(tmp_path):
    result = tmp_path / "generation.json"
    words = ("--preset", "toy", "--rounds", "1", "--prompt", "12", "--length", "6", "--batch", "3")
    printed = run(sys.executable, "-m", "benchmarks.generation", *words, "--json", str(result))
    found = json.loads(result.read_text())["results"]
    assert set(found) == {"ours", "export", "ours, reading", "export, reading", "ours, 3 prompts"}
    assert found["ours"]["cpu_speed_ratio"]["median"] > 0
    assert "| ours, 3 prompts | " in printed


@pytest.mark.slow
def test_projection_counts_four_bytes_per_vector(tmp_path):
    result = tmp_path / "projection.json"
    words = ("--preset", "toy", "--steps", "2", "--device", "cpu", "--json", str(result))
    printed = run(sys.executable, "-m", "benchmarks.projection", *words)
    written = json.loads(result.read_text())
    runs = {(found["ranks"], found["stage"]): found for found in written["runs"]}
    assert set(runs) == {(ranks, stage) for ranks in (1, 2) for stage in (1, 2, 3)}
    # width 64, 2 layers: per layer q, k, v, output and two of 256 in, one of 256 out; two tables
    vectors = 2 * (4 * 64 + 3 * 256) + 2 * 512
    elements = 2 * 16 * 64**2 + 2 * 512 * 64
    for (ranks, _), found in runs.items():
        assert found["vectors"] == vectors
        assert found["bytes"] == found["bytes_formula"] == (4 * vectors if ranks > 1 else 0)
        assert ranks == 1 or found["naive_bytes"] >= 4 * elements
        assert found["elements"] == pytest.approx(elements / ranks, rel=0.05)
        assert found["difference"] < 1e-6
        assert 0 < found["share"]["median"] < 1
    assert printed.count("\n| ") == 1 + len(runs)


@pytest.mark.slow
def test_gpu_suite_in_its_dry_run(tmp_path):
    printed = run("bash", "benchmarks/gpu_suite.sh", str(tmp_path / "out"), "--dry-run")
    written = json.loads((tmp_path / "out" / "gpu_suite.json").read_text())
    assert set(written["cases"]) == {case.name for case in gpu_suite.CASES}
    assert not [case for case in written["cases"].values() if "error" in case]
    assert written["tests"]["collected"] > 0
    page = (tmp_path / "out" / "gpu_suite.md").read_text()
    assert page in printed
    for case in gpu_suite.CASES:
        assert case.name in page


def test_gpu_suite_wants_a_folder_and_a_gpu(tmp_path):
    command = ["bash", "benchmarks/gpu_suite.sh"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 2
    if not torch.cuda.is_available():
        assert "no GPU" in "".join(gpu_suite.what_is_missing(dry_run=False))


def test_gpu_suite_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(gpu_suite, "NEEDED", ("json", "no_such_package"))
    (line,) = gpu_suite.what_is_missing(dry_run=True)
    assert line.startswith("missing: no_such_package")


def test_gpu_suite_halves_the_batch_when_memory_runs_out(monkeypatch):
    seen = []

    def fake(command, seconds):
        seen.append(command[command.index("--micro-batch") + 1])
        if len(seen) == 1:
            return 1, "torch.OutOfMemoryError: CUDA out of memory"
        Path(command[command.index("--json") + 1]).write_text('{"benchmark": "step"}')
        return 0, "| a |\nnoise\n| b |\n"

    monkeypatch.setattr(gpu_suite, "_run", fake)
    case = gpu_suite.Case("name", "benchmarks.step", "--micro-batch 8", "")
    found = gpu_suite.run_case(case, dry_run=False, seconds=100)
    assert seen == ["8", "4"]
    assert found["benchmark"] == "step"
    assert found["printed"] == "| a |\n| b |"


def test_gpu_suite_leaves_out_and_reports():
    late = gpu_suite.run_case(gpu_suite.CASES[0], dry_run=True, seconds=3)
    assert "not started" in late["error"]
    broken = gpu_suite.run_case(gpu_suite.Case("x", "no_such_module", "", ""), True, 60)
    assert broken["error"] == "exit code 1"
    assert "no_such_module" in broken["output"]
    slow, _ = gpu_suite._run([sys.executable, "-c", "import time; time.sleep(60)"], 1)
    assert slow == 124


def test_shape_gives_one_micro_batch_a_step():
    shape = Shape(width=64, layers=1, heads=2, vocab_size=100, seq_len=8, micro_batch=3)
    config = shape.config("gpt", "fp32", 1, dp=4)
    assert shape.tokens == 24
    assert (config.train.global_batch, config.train.micro_batch) == (12, 3)
    assert config.optim.weight_decay == 0.1
