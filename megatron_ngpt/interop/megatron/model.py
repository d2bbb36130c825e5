"""Megatron's model arguments as our ``model`` section."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_ngpt.interop.megatron.arguments import Arguments
from megatron_ngpt.interop.megatron.found import Found

GPT2_TOKENS = 50257
"""Size of GPT-2's vocabulary, which is that of Megatron's GPT2BPETokenizer."""


def translate_model(args: Arguments, found: Found) -> None:
    """Shape, maths and initial values.

    Raises:
        ValueError: the shape is not given, or the model is of another kind.
    """
    found.set("model.architecture", found.architecture, "of --architecture")
    _shape(args, found)
    _mlp(args, found)
    _positions(args, found)
    _norms(args, found)
    _initial(args, found)
    _vocabulary(args, found)
    if not args.flag("disable-bias-linear"):
        found.warn(
            "biases",
            "Megatron's linear layers have them without --disable-bias-linear; here none has",
        )
    for name in ("add-qkv-bias", "qkv-bias"):
        if args.flag(name):
            found.warn(f"--{name}", "queries, keys and values have no biases here")
    dropouts = [args.number(f"{kind}-dropout", default=0.1) for kind in ("attention", "hidden")]
    if any(dropouts):
        found.warn(
            "dropout",
            f"attention {dropouts[0]:g} and hidden {dropouts[1]:g} there; there is none here",
        )


def _shape(args: Arguments, found: Found) -> None:
    shape: dict[str, tuple[str, ...]] = {
        "layers": ("num-layers", "encoder-num-layers", "decoder-num-layers"),
        "width": ("hidden-size",),
        "heads": ("num-attention-heads",),
    }
    for ours, names in shape.items():
        value = args.count(*names)
        if not value:
            raise ValueError(
                f"--{names[0]} is not given: a model without it, or one that mixes attention with "
                "other layers (--hybrid-layer-pattern), has no counterpart here"
            )
        found.set(f"model.{ours}", value, args.name_of(*names))
    heads = found.settings["model.heads"]
    grouped = args.flag("group-query-attention")
    groups = args.count("num-key-value-heads") or args.count(
        "num-query-groups", default=int(grouped)
    )
    if groups and groups != heads and (grouped or "num-key-value-heads" in args):
        names = ("num-key-value-heads", "num-query-groups")
        found.set("model.kv_heads", groups, args.name_of(*names))
    elif groups and groups != heads:
        found.note("--num-query-groups", "Megatron ignores it without --group-query-attention")
    if head_dim := args.count("kv-channels"):
        found.set("model.head_dim", head_dim, "--kv-channels")


def _mlp(args: Arguments, found: Found) -> None:
    width, gated = found.settings["model.width"], args.flag("swiglu")
    inner = args.count("ffn-hidden-size")
    if inner:
        found.set("model.ffn_width", inner, "--ffn-hidden-size")
    elif gated:
        found.set("model.ffn_width", int(4 * width * 2 / 3 / 64) * 64, "Megatron's, with --swiglu")
    else:
        found.set("model.ffn_width", 4 * width, "Megatron's default, 4 * --hidden-size")
    geglu = [name for name in ("quick-geglu", "geglu") if args.flag(name)]
    if gated or geglu:
        found.set("model.mlp", "swiglu", "--swiglu" if gated else f"--{geglu[0]}")
        if geglu:
            found.warn(f"--{geglu[0]}", "the gate is SiLU here (SwiGLU), not GELU")
        return
    squared = args.flag("squared-relu")
    found.set("model.mlp", "relu2", "--squared-relu" if squared else "nearest to GELU")
    other = next((n for n in ("openai-gelu", "bias-gelu") if args.flag(n)), "")
    if not squared:
        found.warn(
            f"--{other}" if other else "activation",
            "GELU there; squared ReLU here, without a gate and of the same shape "
            "(model.mlp = swiglu is the paper's)",
        )


def _positions(args: Arguments, found: Found) -> None:
    rotary = args.flag("use-rotary-position-embeddings")
    kind = args.text("position-embedding-type", default="rope" if rotary else "learned_absolute")
    args.seen.update(
        ("no-position-embedding", "max-position-embeddings", "position-embedding-type")
    )
    if kind not in ("rope", "yarn", "rotary") and not rotary:
        found.warn(
            "--position-embedding-type",
            f"{kind} there; here positions are rotary (model.rope_theta, of all dimensions)",
        )
    style = "interleaved" if args.flag("rotary-interleaved") else "half"
    found.set("model.rope_style", style, "as Megatron pairs dimensions")
    bases = ("rotary-base", "rotary-position-embeddings-theta", "rope-theta")
    if (base := args.number(*bases, default=10000.0)) != 10000.0:
        found.set("model.rope_theta", base, args.name_of(*bases))
    if (share := args.number("rotary-percent", default=1.0)) != 1.0:
        found.set("model.rotary_fraction", share, "--rotary-percent")
    if factor := args.number("rotary-seq-len-interpolation-factor"):
        found.set("model.rope_scaling", "linear", "--rotary-seq-len-interpolation-factor")
        found.set("model.rope_factor", factor, "--rotary-seq-len-interpolation-factor")
    factor = args.number("rotary-scaling-factor", default=1.0)
    original = args.count(
        "yarn-original-max-position-embeddings", "original-max-position-embeddings"
    )
    if kind == "yarn" and factor > 1 and original:
        found.set("model.rope_scaling", "yarn", "--position-embedding-type yarn")
        found.set("model.rope_factor", factor, "--rotary-scaling-factor")
        found.set("model.rope_original", original, "--yarn-original-max-position-embeddings")
    elif kind == "yarn":
        found.warn(
            "--position-embedding-type yarn",
            "--rotary-scaling-factor and --yarn-original-max-position-embeddings do not say how "
            "far to stretch: rotary positions, not stretched; set model.rope_scaling",
        )
    if args.flag("use-rope-scaling"):
        args.seen.add("rope-scaling-factor")
        found.warn(
            "--use-rope-scaling",
            "Llama 3.1's scaling there; positions are not stretched here (model.rope_scaling has "
            "linear, ntk and yarn)",
        )


def _norms(args: Arguments, found: Found) -> None:
    kind = args.text("normalization", default="LayerNorm")
    eps = args.number("norm-epsilon", "layernorm-epsilon", default=1e-5)
    if found.is_ngpt:
        found.warn(
            "--normalization", f"{kind} there; nGPT has none: hidden states, queries, keys and "
            "rows of matrices have length 1",
        )  # fmt: skip
        if args.flag("qk-layernorm"):
            found.note("--qk-layernorm", "nGPT normalises queries and keys anyway")
        return
    found.set("model.norm_eps", eps, args.name_of("norm-epsilon", "layernorm-epsilon"))
    if "norm-epsilon" not in args and "layernorm-epsilon" not in args:
        found.origins["model.norm_eps"] = "Megatron's default"
    if kind.lower() != "rmsnorm":
        found.warn(
            "--normalization",
            f"{kind} there; here RMSNorm, which subtracts no mean and adds no bias",
        )
    if args.flag("qk-layernorm"):
        found.set("model.gpt_qk_norm", True, "--qk-layernorm")
        found.warn(
            "--qk-layernorm", "a norm with one gain for all heads there; here length 1 after the "
            "rotation, with a gain for each head",
        )  # fmt: skip


def _initial(args: Arguments, found: Found) -> None:
    std = args.number("init-method-std", default=0.02)
    name = "--init-method-std"
    if args.flag("init-method-xavier-uniform"):
        found.warn(
            "--init-method-xavier-uniform", "initial matrices are normal here (model.init_std)"
        )
    elif not found.is_ngpt:
        found.set(
            "model.init_std", std, name if "init-method-std" in args else "Megatron's default"
        )
    elif "init-method-std" in args:
        found.warn(
            name, f"{std:g} there; nGPT draws with 1 / sqrt(width) and normalises what it drew"
        )
    tied = not args.flag("untie-embeddings-and-output-weights")
    stages = args.count("pipeline-model-parallel-size", default=1)
    if tied and stages > 1:
        found.warn(
            "tied embedding", "Megatron ties embedding and head without "
            "--untie-embeddings-and-output-weights; here they are two matrices in a pipeline",
        )  # fmt: skip
    found.set(
        "model.tied_embedding", tied and stages == 1,
        "--untie-embeddings-and-output-weights" if not tied else "Megatron's default"
        if stages == 1 else "a pipeline cannot tie them",
    )  # fmt: skip


def _vocabulary(args: Arguments, found: Found) -> None:
    padded = args.count("padded-vocab-size", "pad-vocab-size-to")
    size = args.count("vocab-size") or _counted(args)
    multiple = args.count("make-vocab-size-divisible-by", default=128)
    multiple *= args.count("tensor-model-parallel-size", default=1)
    if padded:
        origin = args.name_of("padded-vocab-size", "pad-vocab-size-to")
        found.set("model.vocab_size", padded, origin)
    elif size:
        padded = -(-size // multiple) * multiple
        found.set(
            "model.vocab_size", padded, f"{size} padded to a multiple of {multiple}, as there"
        )
    else:
        found.warn(
            "model.vocab_size", "the arguments do not say it (Megatron asks the tokenizer): it is "
            "left at our default of 32000; set it to at least the number of the tokenizer's ids",
        )  # fmt: skip


def _counted(args: Arguments) -> int:
    """Tokens of the tokenizer, where its kind or a file here tells."""
    file = Path(args.text("vocab-file"))
    kind = args.text("tokenizer-type")
    if file.suffix == ".json" and file.is_file():
        return len(json.loads(file.read_text(encoding="utf-8")))
    gpt2 = kind == "GPT2BPETokenizer" or (not kind and "merge-file" in args)
    return GPT2_TOKENS if gpt2 else 0
