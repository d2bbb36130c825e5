"""Megatron's arguments of topology, data, recomputation, files and logging."""

from __future__ import annotations

from typing import Any

from megatron_ngpt.interop.megatron.arguments import Arguments
from megatron_ngpt.interop.megatron.found import Found
from megatron_ngpt.interop.megatron.shell_values import UNKNOWN

_MASKS = ("reset-position-ids", "reset-attention-mask", "eod-mask-loss")


def translate_parallel(args: Arguments, found: Found) -> None:
    """Degrees, schedule of the pipeline, and how a sequence is shared."""
    for ours, *names in (
        ("tp", "tensor-model-parallel-size", "model-parallel-size"),
        ("pp", "pipeline-model-parallel-size"),
        ("cp", "context-parallel-size", "ds-sequence-parallel-size"),
    ):
        if (value := args.count(*names, default=1)) != 1:
            found.set(f"parallel.{ours}", value, args.name_of(*names))
    if cp := found.settings.get("parallel.cp"):
        _context(args, found, cp)
    _pipeline(args, found, found.settings.get("parallel.pp", 1))
    if args.flag("no-pipeline-parallel") and "parallel.pp" in found.settings:
        del found.settings["parallel.pp"]
        found.note("--no-pipeline-parallel", "parallel.pp stays at 1")


def _context(args: Arguments, found: Found, cp: int) -> None:
    if "ds-sequence-parallel-size" in args:
        found.set("parallel.ulysses", cp, "--ds-sequence-parallel-size is Ulysses")
        return
    kinds = args.words("cp-comm-type") or ["p2p"]
    sizes = args.words("hierarchical-context-parallel-sizes")
    ulysses = {"a2a": cp, "a2a+p2p": int(sizes[0]) if sizes else 1}.get(kinds[0], 1)
    found.set(
        "parallel.ulysses",
        ulysses,
        f"--cp-comm-type {kinds[0]}"
        if args.words("cp-comm-type")
        else "Megatron's default, a ring",
    )
    if len(set(kinds)) > 1:
        found.note("--cp-comm-type", f"one kind for all layers here: {kinds[0]}")
    if kinds[0] not in ("p2p", "a2a", "a2a+p2p"):
        found.note("--cp-comm-type", f"{kinds[0]} there; a ring here, with the same result")


def _pipeline(args: Arguments, found: Found, pp: int) -> None:
    layers = found.settings["model.layers"]
    stages = args.count("num-virtual-stages-per-pipeline-rank")
    if each := args.count("num-layers-per-virtual-pipeline-stage"):
        stages = layers // pp // each
    if stages > 1 and pp > 1:
        found.set("parallel.schedule", "interleaved", "virtual pipeline stages")
        found.set("parallel.stages_per_rank", stages, "virtual pipeline stages")
    first, last = (args.count(f"decoder-{end}-pipeline-num-layers") for end in ("first", "last"))
    if (first or last) and pp > 1 and stages < 2:
        middle = pp - bool(first) - bool(last)
        share, over = divmod(layers - first - last, middle) if middle else (0, 0)
        if not over:
            counts = [*([first] * bool(first)), *([share] * middle), *([last] * bool(last))]
            found.set(
                "parallel.layers_per_stage", counts, "--decoder-first/last-pipeline-num-layers"
            )
    elif first or last:
        found.note("--decoder-first-pipeline-num-layers", "layers are balanced by weight here")


def translate_data(args: Arguments, found: Found) -> None:
    """Corpora, their division, and what a document may see."""
    length = args.count("seq-length", "encoder-seq-length", default=1024)
    named = "seq-length" in args or "encoder-seq-length" in args
    found.set("data.seq_len", length, "--seq-length" if named else "our default")
    if train := _blend(args, found, "train", "train-data-path", "data-path"):
        found.set("data.train", train, args.name_of("train-data-path", "data-path"))
    elif "train-data-path" not in args and "data-path" not in args:
        found.warn("data.train", "no --data-path: set it to the PREFIX of a .bin/.idx pair")
    if valid := _blend(args, found, "valid", "valid-data-path"):
        found.set("data.valid", valid, "--valid-data-path")
    if args.words("test-data-path"):
        found.note(
            "--test-data-path", "there is no test set during training; tools/evaluate.py reads one"
        )
    _split(args, found)
    _tokenizer(args, found)
    masks = [name for name in _MASKS if args.flag(name)]
    if "reset-attention-mask" in masks:
        found.set("data.document_mask", True, ", ".join(f"--{name}" for name in masks))
    if 0 < len(masks) < len(_MASKS):
        what = "all three" if "reset-attention-mask" in masks else "none of the three"
        found.warn(
            ", ".join(f"--{name}" for name in masks), f"{what} here: data.document_mask keeps "
            "attention, positions and targets of documents apart together",
        )  # fmt: skip


def _blend(args: Arguments, found: Found, which: str, *names: str) -> Any:
    """A prefix, or a list of corpora with weights; nothing when no path is known."""
    words, option = args.words(*names), args.name_of(*names)
    if not words:
        return ""
    weighted = len(words) % 2 == 0 and all(_is_number(word) for word in words[::2])
    if not weighted and len(words) == 1:
        return found.path(option, words[0], f"data.{which}")
    if not weighted:
        found.warn(
            option, "no weights: Megatron takes them from the sizes; here all are 1, set them"
        )
    prefixes = words[1::2] if weighted else words
    weights = [float(word) for word in words[::2]] if weighted else [1.0] * len(words)
    paths = [found.path(option, prefix, f"data.{which}") for prefix in prefixes]
    sums: dict[str, float] = {}
    for path, weight in zip(paths, weights, strict=True):
        if path and weight:
            sums[path] = sums.get(path, 0.0) + weight
    if len(sums) == 1:
        return next(iter(sums))
    corpora: list[dict[str, Any]] = [{"prefix": p, "weight": w} for p, w in sums.items()]
    _name_apart(corpora)
    return corpora


def _name_apart(corpora: list[dict[str, Any]]) -> None:
    """Corpora whose files are called alike get their folder's name, too."""
    for corpus in corpora:
        parts = corpus["prefix"].split("/")
        alike = [c for c in corpora if c["prefix"].split("/")[-1] == parts[-1]]
        if len(alike) > 1:
            corpus["name"] = "_".join(part for part in parts if part)


def _is_number(word: str) -> bool:
    try:
        return float(word.replace("_", "")) >= 0
    except ValueError:
        return False


def _split(args: Arguments, found: Found) -> None:
    if "data.valid" in found.settings:
        return
    text = args.text("split", default="969,30,1")
    shares = [float(part) for part in text.replace("/", ",").split(",") if part.strip()]
    total, (valid, test) = sum(shares), [*shares[1:], 0.0, 0.0][:2]
    if not total or valid >= total:
        raise ValueError(f"--split = {text}: leaves nothing to train on")
    origin = "--split" if "split" in args else "Megatron's default --split 969,30,1"
    found.set("data.valid_fraction", round(valid / total, 9), origin)
    if test:
        found.warn(
            "--split", f"the last {test / total:.3g} of the documents is a test set there; here it "
            "is for training, but for the share of validation, which is taken from the end",
        )  # fmt: skip


def _tokenizer(args: Arguments, found: Found) -> None:
    kind, model = (
        args.text("tokenizer-type"),
        args.text("tokenizer-model", "tokenizer-name-or-path"),
    )
    option = args.name_of("tokenizer-model", "tokenizer-name-or-path")
    if model and (model.endswith((".model", ".json"))):
        if path := found.path(option, model, "data.tokenizer"):
            found.set("data.tokenizer", path, option)
    elif model and not UNKNOWN.search(model):
        found.note(
            option, f"{model}: set data.tokenizer to its tokenizer.json or SentencePiece model"
        )
    elif model:
        found.path(option, model, "data.tokenizer")
    for name in ("vocab-file", "merge-file"):
        if args.words(name):
            found.note(
                f"--{name}",
                "data.tokenizer wants tokenizer.json or a SentencePiece model; training needs none",
            )
    if kind:
        found.note("--tokenizer-type", f"{kind}: data.tokenizer's file says what it is")


def translate_files(args: Arguments, found: Found) -> None:
    """Checkpoints, evaluation, logging and the end of a start."""
    save = args.text("save")
    if save and (path := found.path("--save", save, "logging.dir")):
        found.set("logging.dir", path, "--save; checkpoints are in its folder checkpoints")
    for ours, *names in (
        ("checkpoint.every", "save-interval"), ("eval.every", "eval-interval"),
        ("eval.steps", "eval-iters"), ("logging.every", "log-interval"),
    ):  # fmt: skip
        if (value := args.count(*names)) or names[0] in args:
            found.set(ours, value, args.name_of(*names))
    if found.settings.get("eval.steps") == 0:
        found.set("eval.every", 0, "--eval-iters 0")
        del found.settings["eval.steps"]
    if "load" in args and args.text("load") != save:
        found.warn(
            "--load",
            "Megatron's checkpoints are not read here: docs/from_megatron.md has the way",
        )
    elif args.flag("load"):
        found.note("--load", "a run resumes by itself from its own checkpoints")
    if minutes := args.count("exit-duration-in-mins"):
        found.set("train.exit_after", f"{minutes}m", "--exit-duration-in-mins")
    if minutes := args.count("distributed-timeout-minutes"):
        found.set("train.hang_timeout", 60.0 * minutes, "--distributed-timeout-minutes")
    if args.flag("tensorboard-dir"):
        found.set("logging.tensorboard", True, "--tensorboard-dir; events are in logging.dir")
    project = args.text("wandb-project")
    if project and not UNKNOWN.search(project):
        found.set("logging.wandb_project", project, "--wandb-project")
    if args.flag("deterministic-mode"):
        found.set("train.deterministic", True, "--deterministic-mode")


def translate_memory(args: Arguments, found: Found) -> None:
    """What is computed again in backward: results do not change by it."""
    whole = (
        "checkpoint-activations",
        "deepspeed-activation-checkpointing",
        "recompute-activations",
    )
    given = [name for name in whole if args.flag(name)]
    granularity = args.text("recompute-granularity") or (
        "selective" if given == ["recompute-activations"] else ""
    )
    if not given and not granularity:
        return
    origin = f"--{given[0]}" if given else "--recompute-granularity"
    found.set("train.recompute", True, origin)
    if granularity == "selective":
        kept = ["matmul", "all_gather", "reduce_scatter"]
        found.set(
            "train.recompute_keep", kept, "selective: attention is computed again, products are not"
        )
    if args.flag("checkpoint-in-cpu") or args.flag("cpu-offloading"):
        found.set("train.offload", True, "--checkpoint-in-cpu or --cpu-offloading")
