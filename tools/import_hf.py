"""Make a checkpoint of weights trained elsewhere, from which any topology trains on.

    python tools/import_hf.py --source FOLDER_OR_FILE --output RUN_DIR
    torchrun --nproc-per-node 8 pretrain_ngpt.py --config RUN_DIR/config.yaml --data.train PREFIX

The source is a folder of Hugging Face NGPT (tools/export_hf.py makes such), a ckpt.pt of
NVIDIA/ngpt, or a state dict of nGPT-pytorch, saved with torch.save alone or as
{"model": state dict, "kwargs": arguments of its nGPT}. Weights are taken over as they are, Adam's
averages start at zero. Exit code 2 when the source is not one of these.

A state dict tells the shape; --kwargs adds the maths, in the package's words:

    python tools/import_hf.py --source ngpt.pt --output RUN_DIR --kwargs add_value_residual=false
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import yaml

from megatron_ngpt.config import Config, load_config, save_config
from megatron_ngpt.console import tool
from megatron_ngpt.model.spec import parameter_table


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was made; 2 when it cannot be."""
    options = _options(argv)
    # they bring torch along, which --help does not wait for
    from megatron_ngpt.interop.imported import write_checkpoint
    from megatron_ngpt.interop.sources import open_source

    try:
        source = open_source(options.source, dict(options.kwargs))
        base = load_config(options.config) if options.config else Config()
        config = replace(
            base,
            model=source.model,
            data=replace(
                base.data,
                tokenizer=_tokenizer(options, base),
                seq_len=(not options.config and source.seq_len) or base.data.seq_len,
            ),
            logging=replace(base.logging, dir=str(options.output)),
        )
        made = write_checkpoint(source, config, Path(config.checkpoint_dir))
        save_config(config, options.output / "config.yaml")
    except (ValueError, OSError) as err:
        print(f"import_hf.py: {err}", file=sys.stderr)
        return 2
    count = sum(prod(spec.shape) for spec in parameter_table(source.model).values())
    print(f"{source.kind}, {count:,} parameters -> {made}")
    if source.warning:
        print(f"warning: {source.warning}", file=sys.stderr)
    print(f"train on: pretrain_ngpt.py --config {options.output}/config.yaml --data.train PREFIX")
    return 0


def _tokenizer(options: argparse.Namespace, base: Config) -> str:
    """What was asked for, or what the run's configuration or the source brings."""
    beside = options.source / "tokenizer.model"
    brought = str(beside.resolve()) if beside.is_file() else ""
    return options.tokenizer or base.data.tokenizer or brought


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder or .pt file")
    parser.add_argument("--output", type=Path, required=True, help="logging.dir of the run to be")
    parser.add_argument("--config", type=Path, help="YAML of the run; its model is replaced")
    parser.add_argument("--tokenizer", default="", help="SentencePiece model, noted in the run")
    parser.add_argument(
        "--kwargs", type=_assignment, nargs="+", default=[], metavar="NAME=VALUE",
        help="arguments of nGPT-pytorch's nGPT that a state dict does not tell",
    )  # fmt: skip
    return parser.parse_args(argv)


def _assignment(text: str) -> tuple[str, Any]:
    """``name=value`` with the value as YAML has it."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=VALUE")
    return name, yaml.safe_load(value)


if __name__ == "__main__":
    raise SystemExit(tool(main))
