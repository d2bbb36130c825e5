"""Bytes of activations that forward keeps for backward, as this model's code keeps them.

D width, Q query and K key features of a rank (heads * head_dim), N query heads, F inner width,
V token ids, e bytes of an activation. With tensor parallelism Q, K, N, F, V are a rank's share and
what lies between blocks is sharded over tokens, hence D / tp (arXiv 2205.05198, section 4).

What a block keeps per token, in bytes:

    residual    ngpt 4 e D / tp           h and branch
                gpt  2 e D / tp           h
    its inputs  2 e D                     gathered over tp; ngpt without tp: they are h
    attention   ngpt e (Q + K)            q and k before rotation and norm; gpt_qk_norm, too
                2 e (Q + K) + 4 N         q, k, v, output, log-sum-exp: flash attention
                                          keeps no T x T matrix (arXiv 2205.14135)
                of M maps, A and V features of output and values: 2 e M (A + V) + 4 N M for the
                padded q, k, the repeated v and the output, 4 M A + 4 A + e A for the maps in fp32,
                their sum and its norm; in fp32 the maps are the output, unless grouped by key
    mlp         (G + 1) e F               inputs of the product, G = 2 with a gate, else 1; product

Context parallelism leaves T / cp tokens to a rank. Ulysses keeps e Q more per token (the output
before and after its exchange). A ring keeps nothing more; its backward works with fp32 gradients of
queries, and of keys and values three times (its own, sent, arriving), and with two pairs of these.

Less memory: recomputed blocks keep e D / tp, offloaded ones nothing here, and the outputs of ops
that recompute spares (``kept_outputs``); the MLP in tiles keeps only its input, which ngpt has as h
anyway. What is computed again is whole while it is worked on: a block, a tile.

The embedding's output is the first block's h. The head, whose loss is computed with its gradient
(``ops/loss.py``), keeps this: e D a token, and V D / tp of the weight's; gpt's final norm keeps
e D / tp. Its logits live a chunk at a time, 8 V a token of the chunk (4 V with ``engine.ops`` =
cpp or triton), and 2 V more in bf16. arXiv 2205.05198, eq. 2, counts 34 D + 5 N T for a GPT block
with dropout and without flash attention; here nothing is dropped out, and norms keep fp32. Other
terms that do not grow with tokens are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ngpt.config import CHUNK_BYTES, CHUNK_ROWS, Config, ModelConfig, ParallelConfig
from megatron_ngpt.config.deepspeed import uses_low_precision_copy
from megatron_ngpt.estimate.alive import alive
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.model.part import Part
from megatron_ngpt.parallel.shard import local_model, local_rows
from megatron_ngpt.parallel.stages import stage_map


@dataclass(frozen=True)
class TokenBytes:
    """Bytes per token of a micro-batch on one rank."""

    block: int
    """Kept by one block."""

    head: int
    """Kept by final norm and loss, the weight's gradient apart."""

    hidden: int
    """One hidden state, as it goes from block to block and from stage to stage."""

    block_working: int
    """Gradients alive at once inside one block's backward."""

    block_pending: int
    """Gradients of one block's linear maps and scales that wait for a separate weight pass."""

    head_pending: int
    """The same of the head, the weight's gradient apart."""

    @classmethod
    def of(cls, config: Config, tp: int) -> TokenBytes:
        """For a rank of a tensor-parallel group."""
        model, e = local_model(config.model, tp), 2 if config.train.dtype == "bf16" else 4
        norm = 0 if model.is_ngpt else e * model.width // tp
        return cls(
            block=_residuals(model, e, tp) + _branches(config, model, e, tp),
            head=e * model.width + norm,
            hidden=e * model.width // tp,
            block_working=_working(config, model, e),
            block_pending=_pending(model, e, tp),
            head_pending=e * model.width,
        )


def head_gradient(config: Config, tp: int) -> int:
    """Bytes of the gradients of a rank's head and of s_z, as they wait for the backward."""
    element = 2 if uses_low_precision_copy(config) else 4
    rows = local_rows(config.model.vocab_size, tp)
    return element * rows * config.model.width + (4 * rows if config.model.is_ngpt else 0)


def _chunk_working(config: Config, tp: int) -> int:
    """Bytes of a chunk's logits, of the fp32 sum that becomes the weight's gradient, and on a CPU
    of the head's rows times s_z."""
    rows, low = local_rows(config.model.vocab_size, tp), config.train.dtype == "bf16"
    device = "cpu" if config.engine.device == "cpu" else "cuda"
    fits = max(CHUNK_ROWS[device], CHUNK_BYTES[device] // (4 * rows))
    chunk = config.train.loss_chunk * config.train.micro_batch or fits
    in_place = device == "cpu" or config.engine.ops == "triton"
    each = (4 if in_place else 8) + (2 if low else 0)
    copies = low + (device == "cpu" and config.model.is_ngpt)
    fp32 = 4 * rows * config.model.width
    return min(chunk, rank_tokens(config)) * each * rows + copies * fp32


def _residuals(model: ModelConfig, e: int, tp: int) -> int:
    return 2 * (2 if model.is_ngpt else 1) * e * model.width // tp


def _branches(config: Config, model: ModelConfig, e: int, tp: int) -> int:
    """Attention and MLP with their inputs, as far as they are kept."""
    # the input of ngpt's branches is h, which the residual step keeps
    local = 0 if model.is_ngpt else e * model.width // tp
    gathered = 0 if model.is_ngpt and tp == 1 else e * model.width
    mlp = local if config.train.mlp_tile else gathered + _mlp(model, e)
    return gathered + _attention(model, e, config.parallel.ulysses > 1) + mlp


def kept_outputs(config: Config, tp: int) -> dict[str, int]:
    """Bytes per token and block of what each op of ``train.recompute_keep`` gives, on a rank.

    Attention's core gives its output and a log-sum-exp; matrices what they are multiplied to, tp's
    output matrices parts of whole sums. The MLP in tiles gives nothing.
    """
    model, e = local_model(config.model, tp), 2 if config.train.dtype == "bf16" else 4
    q, k, tiled = model.maps * model.output_width, model.maps * model.value_width, 0
    if not config.train.mlp_tile:
        tiled = model.width + (2 if model.is_gated else 1) * model.ffn_width
    branches = (1 if config.train.mlp_tile else 2) * (tp > 1) * e * model.width
    inputs = model.query_width + model.key_width + model.value_width
    sizes = {
        "attention": e * q + 4 * model.maps * model.heads,
        "matmul": e * (inputs + model.width + tiled),
        "all_gather": branches,
        "reduce_scatter": branches // tp,
        "all_to_all": 2 * e * (q + k) * (config.parallel.ulysses > 1),
    }
    return {op: sizes[op] for op in config.train.recompute_keep}


def _working(config: Config, model: ModelConfig, e: int) -> int:
    """The larger of attention's and the MLP's."""
    q, k = model.heads * model.head_dim, model.kv_heads * model.head_dim
    # gradients of queries, keys, values, output and hidden states
    attention = max(2 * e * (q + k + model.width), _ring_working(config.parallel, model, e))
    mlp = 16 * model.ffn_width + (_mlp(model, e) if config.train.mlp_tile else 0)
    return max(int(mlp * _share(config, config.train.mlp_tile * config.parallel.tp)), attention)


def _share(config: Config, tokens: int) -> float:
    """Part of a rank's tokens that a piece of so many of each sequence is; 0 means all."""
    return min(1.0, tokens * config.parallel.cp / config.data.seq_len) if tokens else 1.0


def _attention(model: ModelConfig, e: int, exchanged: bool) -> int:
    flash = 2 * e * model.maps * (model.output_width + model.value_width)
    flash += 4 * model.heads * model.maps
    flash += e * model.maps * model.output_width if exchanged else 0
    if model.attention != "standard":
        flash += _mixing(model, e)
    if not model.scales_qk:
        return flash
    return flash + e * (model.query_width + model.key_width)


def _mixing(model: ModelConfig, e: int) -> int:
    """What the sum of a head's maps and its norm keep."""
    in_order = model.attention == "differential" or model.kv_heads in (1, model.heads)
    maps = 0 if e == 4 and in_order else 4 * model.maps  # else the output itself is summed
    return (maps + 4 + e) * model.output_width


def _mlp(model: ModelConfig, e: int) -> int:
    return (3 if model.is_gated else 2) * e * model.ffn_width


def _ring_working(parallel: ParallelConfig, model: ModelConfig, e: int) -> int:
    q, k = model.maps * model.output_width, model.maps * model.value_width
    return 4 * q + 3 * 8 * k + 2 * e * 2 * k if parallel.cp > parallel.ulysses else 0


def _pending(model: ModelConfig, e: int, tp: int) -> int:
    q, inner = model.query_width, (2 if model.is_gated else 1) * model.ffn_width
    linear = e * (q + model.key_width + model.value_width + inner + 2 * model.width)
    between = 2 * e * model.width // tp  # of the residual steps or norms
    scaled = q * model.scales_qk + model.ffn_width * model.is_ngpt
    return linear + between + e * scaled


def part_kept(config: Config, tp: int, part: Part) -> int:
    """Bytes that one micro-batch keeps in a part of the model between forward and backward."""
    per_token, layers = TokenBytes.of(config, tp), len(part.layers)
    again = 0 if config.train.offload else per_token.hidden
    again += sum(kept_outputs(config, tp).values())
    kept = layers * (again if config.train.recompute else per_token.block)
    kept += per_token.head if part.last else per_token.hidden  # a stage keeps what it sent
    fixed = head_gradient(config, tp) if part.last else 0
    own = config.parallel.cp > 1 or config.data.document_mask  # positions of each sequence
    rows = config.train.micro_batch if own else 1
    rotary = 4 * config.model.rotary_dim * rows * config.data.seq_len // config.parallel.cp
    return rank_tokens(config) * kept + rotary + fixed


def rank_tokens(config: Config) -> int:
    """Tokens of one micro-batch on one rank, tensor parallelism apart."""
    return config.train.micro_batch * config.data.seq_len // config.parallel.cp


def activations(config: Config, degrees: Degrees, pp_index: int) -> int:
    """Most bytes of activations on a rank at once, the gradients inside a backward included."""
    per_token = TokenBytes.of(config, degrees.tp)
    tokens = rank_tokens(config)
    stages = stage_map(config)
    parts = [stages.parts[number] for number in stages.of_rank(pp_index)]
    kept = [part_kept(config, degrees.tp, part) for part in parts]
    each = per_token.block_working
    if config.train.recompute:
        each += per_token.block  # one block at a time is whole again
    working = tokens * each
    if any(part.last for part in parts):  # by then the head's is gone
        gone = tokens * per_token.head + head_gradient(config, degrees.tp)
        working = max(working - gone, _chunk_working(config, degrees.tp))
    if degrees.pp == 1:
        return sum(kept) + working
    micro_batches = config.train.global_batch // (config.train.micro_batch * degrees.dp)
    counts = alive(config.parallel, micro_batches, pp_index)
    most = max(sum(n * k for n, k in zip(count, kept, strict=True)) for count in counts)
    if config.parallel.schedule in ("zero_bubble", "zbv"):
        waiting = 1 + (pp_index if config.parallel.schedule == "zero_bubble" else 0)
        pending = max(_part_pending(per_token, part) for part in parts)
        pending = tokens * pending + head_gradient(config, degrees.tp) * parts[-1].last
        working += waiting * pending
    # a stage has buffers of its own for every micro-batch of a step: what it receives, with the
    # gradient it returns, and the gradient it receives
    buffers = sum(2 * (not part.first) + (not part.last) for part in parts)
    return most + working + tokens * micro_batches * buffers * per_token.hidden


def _part_pending(per_token: TokenBytes, part: Part) -> int:
    return len(part.layers) * per_token.block_pending + part.last * per_token.head_pending
