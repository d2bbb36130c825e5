"""Evaluate a checkpoint by context length, on any number of ranks and any topology.

    python tools/evaluate.py --checkpoint DIR --data PREFIX --lengths 1k,2k,4k
    torchrun --nproc-per-node 8 tools/evaluate.py --checkpoint DIR --data PREFIX --passkey \
        --lengths 32k,128k --plot lengths.png --parallel.cp 8 --train.loss_chunk 4096

Any other option is one of pretrain_ngpt.py and wins over the checkpoint's configuration, so that
lengths beyond training may be tried with another rotary embedding (--model.rope_scaling). The loss
is that of whole documents, the first LENGTH tokens of each, by position.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_ngpt.config import Config, load_config
from megatron_ngpt.config.words import tokens_of
from megatron_ngpt.console import tool
from megatron_ngpt.data.agreement import check_ids
from megatron_ngpt.data.bulk import load_tokenizer
from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.known import open_corpus
from megatron_ngpt.data.provenance import ANY, COMPARE_NOT, Provenance, check_tokenizer
from megatron_ngpt.extras import require
from megatron_ngpt.mesh.degrees import Degrees
from megatron_ngpt.mesh.launch import (
    Launch,
    finish,
    pick_device,
    read_launch,
    start,
    tell,
    without_local_rank,
)
from megatron_ngpt.parallel.plan import check_topology
from megatron_ngpt.run.checkpoints import find_checkpoint
from megatron_ngpt.run.durable import DamagedCheckpoint

if TYPE_CHECKING:
    from megatron_ngpt.engine.engine import Engine
    from megatron_ngpt.train.by_length import Passkey


def main(launch: Launch, argv: list[str]) -> None:
    """Refuse what cannot run before any process group starts; then evaluate and tell."""
    options, overrides = _options().parse_known_args(argv)
    if not options.data and not options.passkey:
        raise ValueError("nothing to evaluate: give --data PREFIX, --passkey or both")
    if options.plot:
        require("matplotlib", "plot", "--plot")
    checkpoint = find_checkpoint(options.checkpoint)
    lengths = sorted(_lengths(options.lengths))
    config = load_config(checkpoint / "config.yaml", *overrides)
    degrees = Degrees.of(config.parallel, launch.world_size)
    config = for_evaluation(config, degrees, lengths[-1])
    check_topology(config, degrees)
    for length in lengths:
        if length % config.parallel.sequence_unit:
            raise ValueError(
                f"--lengths {length} is not a multiple of {config.parallel.sequence_unit}, which "
                "the ranks of tp and cp share"
            )
    # what needs torch is imported once nothing can be refused without it
    from megatron_ngpt.engine.checkpoint.weights import load_weights
    from megatron_ngpt.engine.engine import Engine
    from megatron_ngpt.mesh.mesh import Mesh
    from megatron_ngpt.train.by_length import long_documents

    corpus = open_pair(options.data, config) if options.data else None
    documents = long_documents(corpus, lengths[-1], options.documents) if corpus else []
    tokenizer = options.tokenizer or config.data.tokenizer
    if options.passkey and tokenizer:
        check_tokenizer(config.data.tokenizer_sha256, tokenizer, "--tokenizer", COMPARE_NOT)
    prompts = passkeys(options, lengths, tokenizer) if options.passkey else {}
    device = pick_device(config.engine.device, launch.local_rank)
    start(launch, device)
    engine = Engine(config, Mesh.build(degrees, device))
    shapes = {name: spec.shape for name, spec in engine.table.items()}
    engine.masters.set_weights(load_weights(checkpoint, shapes))
    found = measure(engine, lengths, documents, prompts, options.buckets)
    if launch.rank == 0:
        report(found, options)


def open_pair(prefix: str, config: Config) -> IndexedDataset:
    """The pair to evaluate on, made with the tokenizer of what the run was trained on.

    Raises:
        FileNotFoundError, ValueError: there is no such pair, or it does not fit.
    """
    corpus = open_corpus("--data", prefix, config.data.cache_dir)
    if not isinstance(corpus, IndexedDataset):
        raise ValueError(f"--data {prefix} is a flat file, which has no documents: make a pair")
    made = Provenance.of(corpus) or Provenance()
    ours = config.data.tokenizer_sha256
    if made.tokenizer and ours not in ("", ANY, made.tokenizer):
        raise ValueError(
            f"--data {prefix} was made with another tokenizer ({made.tokenizer_file}, SHA-256 "
            f"{made.tokenizer[:12]}) than what the run was trained on ({ours[:12]}): preprocess "
            "the text with the run's, or give --data.tokenizer_sha256 any"
        )
    check_ids(config, corpus, made)
    return corpus


def for_evaluation(config: Config, degrees: Degrees, length: int) -> Config:
    """One document at a time, each rank with its whole share of the parameters."""
    train = config.train
    batch = degrees.dp * degrees.pp * config.parallel.stages_per_rank
    return replace(
        config,
        train=replace(train, global_batch=batch, micro_batch=1, compile=False),
        optim=replace(config.optim, zero_stage=0),
        engine=replace(config.engine, deepspeed_overrides=""),
        data=replace(config.data, seq_len=length, document_mask=False),
    )


def passkeys(
    options: argparse.Namespace, lengths: list[int], tokenizer: str
) -> dict[tuple[int, float], list[Passkey]]:
    """Prompts by length and depth."""
    if not tokenizer:
        raise ValueError("--passkey needs --tokenizer: the run's configuration has none")
    from megatron_ngpt.train.by_length import Passkey

    encode, depths = load_tokenizer(tokenizer).encode, np.linspace(0, 1, options.depths)
    keys = np.random.default_rng(0).integers(10_000, 100_000, options.trials).tolist()
    return {
        (length, float(depth)): [Passkey.make(encode, length, depth, key) for key in keys]
        for length in lengths
        for depth in depths
    }


def measure(
    engine: Engine,
    lengths: list[int],
    documents: list[np.ndarray],
    prompts: dict[tuple[int, float], list[Passkey]],
    buckets: int,
) -> dict[str, Any]:
    """Everything asked for; collective."""
    from megatron_ngpt.train.by_length import loss_by_position, passkey_accuracy

    found: dict[str, Any] = {"loss": {}, "passkey": {}, "documents": len(documents)}
    for length in lengths if documents else ():
        cut = [document[: length + 1] for document in documents]
        found["loss"][length] = loss_by_position(engine, cut, min(buckets, length))
    for (length, depth), asked in prompts.items():
        found["passkey"].setdefault(length, {})[depth] = passkey_accuracy(engine, asked)
    return found


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Print tables; write the JSON file and the plot that were asked for."""
    if found["loss"]:
        print(f"loss in nats by position, first to last part, of {found['documents']} documents")
    for length, parts in found["loss"].items():
        told = " ".join(f"{part:7.4f}" for part in parts)
        sizes = [len(part) for part in np.array_split(np.arange(length), len(parts))]
        mean = np.average(parts, weights=sizes)  # parts may differ by a token
        print(f"{length:>9}  mean {mean:7.4f}  {told}")
    if found["passkey"]:
        print(f"passkeys found, by depth from beginning to end, of {options.trials} each")
    for length, by_depth in found["passkey"].items():
        print(f"{length:>9}  " + " ".join(f"{100 * share:5.0f} %" for share in by_depth.values()))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.plot:
        plot(found, options.plot)


def plot(found: dict[str, Any], path: Path) -> None:
    """Loss by position as lines, passkeys as a heat map."""
    pyplot = require("matplotlib.pyplot", "plot", "--plot")
    wanted = [name for name in ("loss", "passkey") if found[name]]
    figure, axes = pyplot.subplots(1, len(wanted), figsize=(6 * len(wanted), 4), squeeze=False)
    for name, axis in zip(wanted, axes[0], strict=True):
        if name == "loss":
            for length, parts in found["loss"].items():
                ends = (np.arange(len(parts)) + 1) * length / len(parts)
                axis.plot(ends, parts, marker="o", label=f"{length} tokens")
            axis.set(xlabel="position in the document", ylabel="loss, nats", xscale="log")
            axis.legend()
        else:
            shares = np.array([list(by_depth.values()) for by_depth in found["passkey"].values()])
            image = axis.imshow(shares.T, vmin=0, vmax=1, aspect="auto", cmap="RdYlGn")
            axis.set_xticks(range(len(shares)), list(found["passkey"]))
            depths = next(iter(found["passkey"].values()))
            axis.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
            axis.set(xlabel="tokens", ylabel="depth of the passkey")
            figure.colorbar(image, ax=axis, label="found")
    figure.tight_layout()
    figure.savefig(path)


def _lengths(words: str) -> list[int]:
    """Tokens of 1k,2k,4k: powers of two."""
    try:
        return [tokens_of(word) for word in words.split(",")]
    except ValueError as err:
        raise ValueError(f"--lengths {err}") from None


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint, or run folder")
    parser.add_argument("--data", default="", help="PREFIX of a .bin/.idx pair of long documents")
    parser.add_argument("--lengths", required=True, help="tokens, such as 1k,2k,4k")
    parser.add_argument("--documents", type=int, default=16, help="documents to read, at most")
    parser.add_argument("--buckets", type=int, default=8, help="parts of a length with a loss each")
    parser.add_argument("--passkey", action="store_true", help="also look for hidden numbers")
    parser.add_argument("--depths", type=int, default=5, help="places where a number is hidden")
    parser.add_argument("--trials", type=int, default=4, help="numbers per length and depth")
    parser.add_argument(
        "--tokenizer",
        default="",
        help="its tokenizer, if not the run's own",
    )
    parser.add_argument("--output", type=Path, help="JSON file for all numbers")
    parser.add_argument("--plot", type=Path, help="image file; extra plot")
    return parser


def run() -> int:
    """Exit code: 0 done, 2 refused for what the user asked."""
    launch = Launch()
    try:
        launch = read_launch()
        main(launch, without_local_rank(sys.argv[1:]))
        return 0
    except (ValueError, FileNotFoundError, ModuleNotFoundError, DamagedCheckpoint) as err:
        tell(launch, f"evaluate.py: {err}")
        return 2
    except SystemExit as ended:
        return int(ended.code or 0)


if __name__ == "__main__":
    finish(tool(run))
