"""The engine on one GPU: ``pytest -m gpu tests/engine/test_gpu.py``.

Each device gets one worker process, because DeepSpeed serves one kind of device per process. TF32
stays off, which is torch's default. Tolerances in bf16 are some 20 times what the same comparison
gives on CPU.
"""

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch

from megatron_ngpt.config import (
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainConfig,
)
from megatron_ngpt.engine.engine import Engine
from megatron_ngpt.extras import available
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import Launch, start
from megatron_ngpt.mesh.mesh import Mesh
from megatron_ngpt.parallel.apply import table_parameters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS, VOCAB = 10, 512
SECONDS = 120
"""Limit of one run, torch.compile included."""


@dataclass(frozen=True)
class Run:
    """Settings of one training run."""

    device: str = "cuda"
    architecture: str = "ngpt"
    dtype: str = "fp32"
    zero_stage: int = 0
    attention: str = "sdpa"
    compile: bool = False

    def config(self) -> Config:
        return Config(
            model=ModelConfig(
                architecture=self.architecture, width=64, layers=2, heads=4, vocab_size=VOCAB
            ),
            optim=OptimConfig(lr=1e-3, schedule="constant", zero_stage=self.zero_stage),
            data=DataConfig(seq_len=64),
            train=TrainConfig(
                steps=STEPS, global_batch=4, micro_batch=2, dtype=self.dtype, compile=self.compile
            ),
            engine=EngineConfig(device=self.device, attention=self.attention),
        )


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    logits: torch.Tensor
    losses: list[float]
    grad_norms: list[float]
    off_sphere: float
    """Largest | |vector| - 1 | over the fp32 masters of all normalised matrices."""
    copies_off_sphere: float
    """The same over the parameters that the model computes with."""


@functools.cache
def mesh_of(device: str) -> Mesh:
    start(Launch(), torch.device(device))
    return Mesh.build(Degrees.of(ParallelConfig(), 1), torch.device(device))


def train(run: Run) -> Result:
    """In the worker: the same batch, two micro-batches a step, ten times."""
    assert not torch.backends.cuda.matmul.allow_tf32
    engine = Engine(run.config(), mesh_of(run.device))
    ids = torch.randint(VOCAB, (2, 2, 65), generator=torch.Generator().manual_seed(0))
    ids = ids.to(run.device)
    with torch.no_grad():
        engine.deepspeed.eval()
        logits = engine.deepspeed(ids[0, :, :-1]).float().cpu()
    steps = [engine.train_step(ids[..., :-1], ids[..., 1:], 1e-3) for _ in range(STEPS)]
    return Result(
        logits=logits,
        losses=[step.loss for step in steps],
        grad_norms=[step.grad_norm for step in steps],
        off_sphere=_off_sphere(engine, masters=True),
        copies_off_sphere=0.0 if run.zero_stage == 3 else _off_sphere(engine, masters=False),
    )


def _off_sphere(engine: Engine, masters: bool) -> float:
    copies = dict(table_parameters(engine.deepspeed.module))
    worst = 0.0
    for name, spec in engine.table.items():
        if spec.norm_dim is not None:
            weight = engine.masters.full_weight(name) if masters else copies[name].detach().float()
            norms = torch.linalg.vector_norm(weight, dim=spec.norm_dim)
            worst = max(worst, float((norms - 1).abs().max()))
    return worst


@pytest.fixture(scope="module")
def result_of():
    """Result of a run; each is trained once, in the worker of its device."""
    spawn = multiprocessing.get_context("spawn")
    workers = {d: ProcessPoolExecutor(1, mp_context=spawn) for d in ("cpu", "cuda")}

    @functools.cache
    def result(run: Run) -> Result:
        return workers[run.device].submit(train, run).result(timeout=SECONDS)

    yield result
    for worker in workers.values():
        worker.shutdown(cancel_futures=True)


def apart(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("architecture", ["ngpt", "gpt"])
def test_fp32_is_the_cpus(result_of, architecture):
    gpu = result_of(Run(architecture=architecture))
    cpu = result_of(Run(architecture=architecture, device="cpu"))
    # another order of summation; TF32 would show as 1e-4 and more
    torch.testing.assert_close(gpu.logits, cpu.logits, rtol=0, atol=1e-5)
    # ten Adam steps amplify it, without normalisation more so
    tolerance = 5e-5 if architecture == "ngpt" else 2e-3
    assert apart(gpu.losses, cpu.losses) < tolerance
    assert apart(gpu.grad_norms, cpu.grad_norms) < 5 * tolerance


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_zero_stages_agree(result_of, zero_stage, dtype):
    plain = result_of(Run(dtype=dtype))
    sharded = result_of(Run(dtype=dtype, zero_stage=zero_stage))
    # bf16: stages 1 and 2 hand over bf16 gradients, 0 and 3 fp32 ones
    assert apart(sharded.losses, plain.losses) < (5e-5 if dtype == "fp32" else 2e-3)


@pytest.mark.parametrize("architecture", ["ngpt", "gpt"])
def test_bf16_stays_in_a_band_around_fp32(result_of, architecture):
    exact = result_of(Run(architecture=architecture))
    coarse = result_of(Run(architecture=architecture, dtype="bf16", zero_stage=1))
    assert coarse.losses[-1] < coarse.losses[0] - 0.1
    assert apart(coarse.losses, exact.losses) < 5e-3


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_stay_on_the_sphere(result_of, zero_stage, dtype):
    found = result_of(Run(dtype=dtype, zero_stage=zero_stage))
    assert found.off_sphere < 1e-6
    # rounding every element to bf16 changes it by at most 2^-8 of itself
    assert found.copies_off_sphere < (1e-6 if dtype == "fp32" else 2**-8)


@pytest.mark.skipif(not available("flash_attn"), reason="flash-attn is not installed")
def test_flash_attention_is_sdpa(result_of):
    sdpa = result_of(Run(dtype="bf16", zero_stage=1))
    flash = result_of(replace(Run(dtype="bf16", zero_stage=1), attention="flash"))
    assert apart(flash.losses, sdpa.losses) < 5e-3


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("ngpt", "fp32"), ("ngpt", "bf16"), ("gpt", "bf16")]
)
def test_compiled_is_eager(result_of, architecture, dtype):
    run = Run(architecture=architecture, dtype=dtype, zero_stage=1)
    eager, compiled = result_of(run), result_of(replace(run, compile=True))
    # bf16: fused code rounds fewer intermediate results
    assert apart(compiled.losses, eager.losses) < (1e-4 if dtype == "fp32" else 5e-3)
