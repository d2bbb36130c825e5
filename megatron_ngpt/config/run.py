"""Everything about a run that is neither model nor data: parallelism, optimizer, loop, files."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import Literal

CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
"""Logits in memory at a time where ``train.loss_chunk`` says nothing: what a cache holds, or what
fills a GPU."""
CHUNK_ROWS = {"cpu": 512, "cuda": 64}
"""Tokens whose logits are in memory at least: of fewer, products with the head are slow."""

AVERAGES = ("exp_avg", "exp_avg_sq")
"""Of the gradient and of its square, as torch's AdamW calls them."""

RecomputeOp = Literal["attention", "matmul", "all_gather", "reduce_scatter", "all_to_all"]
"""What ``train.recompute_keep`` names; megatron_ngpt/keep.py knows what they are."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Degrees of the mesh. What is left of the world size is data parallelism (dp)."""

    tp: int = 1
    """Tensor parallelism: ranks that share every matrix."""

    pp: int = 1
    """Pipeline parallelism: stages the layers are cut into."""

    cp: int = 1
    """Context parallelism: ranks that share every sequence."""

    ulysses: int = 0
    """Of the cp ranks, how many exchange heads for tokens around attention (Ulysses); the cp /
    ulysses groups of them pass keys and values round a ring. 1 is ring attention alone; 0 means cp,
    Ulysses alone."""

    schedule: Literal["1f1b", "interleaved", "zero_bubble", "zbv"] = "1f1b"
    """Order of forward and backward passes over the pipeline. interleaved: 1F1B with several
    stages a rank; zero_bubble: the same with weight gradients filling the gaps; zbv: two stages a
    rank in a V, weight gradients filling the gaps."""

    stages_per_rank: int = 0
    """Pipeline stages on one rank; 0 means 1 for 1f1b and 2 for the others."""

    layers_per_stage: tuple[int, ...] = ()
    """Number of layers of each stage, first to last; empty means balanced, the head weighed."""

    def __post_init__(self) -> None:
        """Replace "0 means ..." by its value."""
        stages = self.stages_per_rank or (1 if self.schedule == "1f1b" else 2)
        object.__setattr__(self, "stages_per_rank", stages)
        object.__setattr__(self, "ulysses", self.ulysses or self.cp)

    @property
    def sequence_unit(self) -> int:
        """What the length of a sequence must be a multiple of; a ring cuts it in halves, too."""
        ring = self.cp // self.ulysses
        return lcm(self.tp * self.cp, 2 * ring if ring > 1 else 1)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, its schedule and ZeRO. The defaults are nGPT's: no weight decay, no warm-up."""

    optimizer: Literal["adamw", "muon", "muonh"] = "adamw"
    """muon: matrices of blocks by Muon (arXiv 2502.16982), the rest by AdamW; muonh: the same, each
    of them kept at the Frobenius norm it started with. Both need whole matrices on every rank:
    parallel.tp 1, and on several replicas optim.zero_stage 0."""

    lr: float = 1e-3
    """Peak learning rate; under muon, and muonh, that of the matrices of blocks."""

    adam_lr: float = 0.0
    """Peak learning rate of what muon and muonh leave to AdamW; 0 means lr."""

    momentum: float = 0.95
    """Of muon and muonh: exponential average of the gradient, with Nesterov's look ahead."""

    min_lr: float = 0.0
    """Learning rate at the end of the decay."""

    schedule: Literal["cosine", "linear", "constant", "wsd", "logarithmic"] = "cosine"
    """Shape after warm-up; wsd stays at lr, then falls linearly over the last decay_steps;
    logarithmic falls fast, then slowly (arXiv 2608.01284)."""

    curvature: float = 0.1
    """rho of the logarithmic schedule: the smaller, the faster it falls at first."""

    warmup_steps: int = 0
    """Steps of linear warm-up from 0 to lr."""

    decay_steps: int = 0
    """Length of wsd's final decay in steps; 0 means a fifth of train.steps. Unused otherwise."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's exponential averages of the gradient and of its square."""

    eps: float = 1e-8
    """Adam's epsilon."""

    gate: float = 1.0
    """Exponent a of GatedAdamW: updates are multiplied by sigmoid(a log(d / eps)), d being the root
    of the second average (arXiv 2608.01284). 1 is AdamW itself, 0.5 the smoother gate."""

    angle_cap: float = 0.0
    """Largest angle in radians by which a step of ngpt turns a vector of a matrix, embeddings
    apart (arXiv 2608.01284); 0 means none. Keeps a copy of the masters."""

    angle_cap_schedule: Literal["constant", "learning_rate"] = "constant"
    """constant: angle_cap holds in every step; learning_rate: it follows the learning rate, times
    lr(step) / lr, so that it binds as often at the end of the decay as at the peak."""

    reference_steps: int = 0
    """train.steps at which lr was found, for model.parametrisation = nugpt; 0 means this run's."""

    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; vectors have none. The GPT baseline wants 0.1."""

    grad_clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What ZeRO shards over dp: 0 nothing, 1 optimizer state, 2 + gradients, 3 + parameters."""

    def averages(self, group: str) -> tuple[str, ...]:
        """What the optimizer keeps of every parameter of a group of the parameter table."""
        return AVERAGES[:1] if self.is_muon and group == "matrix" else AVERAGES

    @property
    def is_muon(self) -> bool:
        """Whether matrices of blocks are orthogonalised, on a fixed radius or not."""
        return self.optimizer != "adamw"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and size of the run."""

    steps: int = 1000
    """Optimizer steps in the whole run, over all restarts."""

    global_batch: int = 32
    """Sequences per step, over all ranks."""

    micro_batch: int = 4
    """Sequences per forward pass on one rank; the rest of global_batch is accumulated."""

    seed: int = 1234
    """Seed of the initial weights and of the data order."""

    accept_changes: tuple[str, ...] = ()
    """Settings, by name, that may differ from the run so far although that breaks a guarantee, as
    train.seed or data.train, whose change repeats some tokens and loses others."""

    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrices and activations; scaling vectors and optimizer state stay fp32."""

    stop_at: int = 0
    """Save and exit after this step although the schedule goes on to steps; 0 means never."""

    exit_after: str = ""
    """Time since the start after which the run saves and ends, for sites whose scheduler sends no
    signal before its limit: 3h50m, 90m, or a number of minutes. Empty means never."""

    hang_timeout: float = 600.0
    """Seconds without a finished step, evaluation batch or save after which every rank writes its
    stack to logging.dir/trouble and ends with exit code 3. Start and first step, which may compile,
    get three times as much. 0 means never."""

    elastic: bool = False
    """When micro_batch does not suit the number of ranks, take the largest smaller one that does
    instead of refusing; global_batch stays."""

    recompute: bool = False
    """Keep only each block's input and compute the block again in backward (activation
    checkpointing): less memory, about a third more computation."""

    recompute_keep: tuple[RecomputeOp, ...] = ()
    """Ops inside blocks whose outputs recompute keeps instead of computing them again (selective
    activation checkpointing): attention, its core alone, with its ring; matmul, products with
    weight matrices; tp's all_gather and reduce_scatter; the all_to_all of Ulysses."""

    offload: bool = False
    """Keep each block's input, which recompute keeps, in the host's memory instead of the GPU's."""

    mlp_tile: int = 0
    """Tokens of a rank's sequences that the MLP works on at a time, each tile computed again in
    backward; 0 means all at once."""

    loss_chunk: int = 0
    """Tokens of each sequence whose logits are in memory at a time; 0 means as many as suit the
    device: 8 MiB of logits on a CPU, 256 MiB on a GPU."""

    compile: bool = False
    """Compile the blocks with torch.compile."""

    compile_cache: str = ""
    """Folder where compiled blocks are kept for later starts and other ranks; empty means
    logging.dir/compile_cache. TORCHINDUCTOR_CACHE_DIR in the environment goes before it."""

    deterministic: bool = False
    """Only algorithms that give the same bits each time: two runs on one machine are equal to the
    last bit. On CPUs they are without it, too; on GPUs it costs speed and some memory."""

    on_fault: Literal["stop", "skip", "rollback"] = "stop"
    """What follows when the loss or the gradient of a step is no finite number, or the loss is a
    spike (spike_threshold); nothing of such a step reaches the weights. stop: the run ends with
    exit code 1. skip: its batch is left out, and the step is done with the next one. rollback: back
    to the newest checkpoint, leaving out all data from there to the fault."""

    fault_limit: int = 5
    """Faults in the last fault_window steps after which on_fault = skip or rollback stops, too."""

    fault_window: int = 1000
    """Steps in which fault_limit counts."""

    spike_threshold: float = 0.0
    """A loss this many standard deviations above the median of the last spike_window ones is a
    fault; the deviation is 1.4826 times the median distance from the median. 0 means none is; 8 to
    20 are usual. A new stage of the data begins a new window."""

    spike_window: int = 100
    """Steps that spike_threshold measures by; until so many are done, nothing is a spike."""

    check_bits: bool = True
    """Whether each step looks for flipped bits in the weights that it normalises; one ends the run
    with exit code 1 before it is saved."""

    check_every: int = 500
    """Steps between checks that replicated parameters are equal on all their ranks, and of how far
    unit vectors are from length 1; 0 means never."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Sharded checkpoints. A run resumes by itself from the newest complete one in dir."""

    dir: str = ""
    """Folder of the checkpoints; empty means logging.dir/checkpoints."""

    every: int = 500
    """Steps between checkpoints; the last step is always saved. 0 saves only there."""

    keep: int = 3
    """Newest checkpoints kept; 0 keeps all."""

    start_over: bool = False
    """Begin at step 1 again where the run's checkpoints are gone, instead of refusing."""

    asynchronous: bool = True
    """Write in the background while training goes on."""

    verify: bool = True
    """Check every file's checksum before resuming from it."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Validation loss during training."""

    every: int = 100
    """Steps between evaluations, and one at the end; 0 means never."""

    steps: int = 10
    """Global batches per evaluation, always the same ones while global_batch and seq_len stay."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step is computed; nothing here changes what is computed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when torch sees one."""

    attention: Literal["auto", "sdpa", "flash", "cpp"] = "auto"
    """auto takes flash-attn when it is installed and the tensors suit it; on a CPU cpp, which is
    C++ that the first start compiles, like that of ops; else sdpa, which is torch's."""

    ops: Literal["auto", "reference", "cpp", "triton"] = "auto"
    """Who computes what is no product of matrices: reference is torch; cpp, for CPUs, is C++ that
    the first start compiles in about 10 seconds and keeps in ~/.cache/megatron_ngpt; triton, for
    GPUs, are Triton kernels. auto takes cpp on a CPU with a compiler, else the reference."""

    deepspeed_overrides: str = ""
    """JSON file merged over the DeepSpeed configuration derived from this one."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where a run's files go and what it tells."""

    dir: str = "runs/default"
    """Folder for metrics.jsonl, config.yaml and, unless checkpoint.dir is set, checkpoints."""

    owner_wait: str = ""
    """How long a start waits for the end of another one that owns the run: 2h, or minutes. Empty
    means not at all: it is refused."""

    owner_lease: float = 120.0
    """Seconds without a sign of life of this run after which a start on another machine takes it
    over. A file system whose caches are older than that would be no witness."""

    every: int = 10
    """Steps between progress lines when the output is no terminal; metrics.jsonl has every step."""

    vitals_every: int = 10
    """Steps between records of what the model shows, in vitals.jsonl: nGPT's scales by layer,
    angles of a step, gradient norms by kind of parameter, memory; 0 means never."""

    spectra_every: int = 500
    """Steps between records of condition numbers of all matrices and of embeddings' cosines, and
    one at the end; 0 means never."""

    tensorboard: bool = False
    """Also write TensorBoard events to dir/tensorboard."""

    wandb_project: str = ""
    """Also log to this Weights & Biases project."""

    mlflow_experiment: str = ""
    """Also log to this MLflow experiment, at MLFLOW_TRACKING_URI or else in dir/mlruns."""

    prometheus: str = ""
    """Also keep the newest values in this file, for node_exporter's textfile collector: a name that
    ends in .prom, in the folder that it reads."""
