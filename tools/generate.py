"""Continue prompts with a checkpoint: python tools/generate.py --checkpoint DIR --prompt TEXT ...

Several prompts go through the model together, --batch of them at a time; each gets the text that it
would get alone with its seed (--seed for the first, one more for each that follows).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ngpt.config import load_config
from megatron_ngpt.console import tool
from megatron_ngpt.data.bulk import Tokenizer, load_tokenizer
from megatron_ngpt.data.provenance import check_tokenizer
from megatron_ngpt.run.checkpoints import find_checkpoint
from megatron_ngpt.run.durable import DamagedCheckpoint

if TYPE_CHECKING:
    import torch


def main() -> int:
    """Print each prompt with its continuation; 2 when something asked for is not there."""
    options = _options()
    try:
        checkpoint = find_checkpoint(options.checkpoint)
        config = load_config(checkpoint / "config.yaml")
        tokenizer = open_tokenizer(options.tokenizer or config.data.tokenizer)
        check_tokenizer(config.data.tokenizer_sha256, tokenizer.path, "--tokenizer")
        # with torch, which --help and a wrong folder do not wait for
        from megatron_ngpt.engine.checkpoint.weights import load_model
        from megatron_ngpt.train.generate import generate_all

        model = load_model(checkpoint, config.model, pick_device(options.device))
        prompts = [tokenizer.encode(prompt) for prompt in read_prompts(options)]
        for start in range(0, len(prompts), options.batch):
            some = prompts[start : start + options.batch]
            made = generate_all(
                model,
                some,
                length=options.length,
                temperature=options.temperature,
                top_p=options.top_p,
                seed=options.seed + start,
                stop=tokenizer.eos_id,
            )
            for ids, more in zip(some, made, strict=True):
                print(tokenizer.decode([*ids, *more]), flush=True)
                print("-" * 72)
    except (ValueError, FileNotFoundError, ModuleNotFoundError, DamagedCheckpoint) as err:
        print(f"generate.py: {err}", file=sys.stderr)
        return 2
    return 0


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Those of the command line, then the lines of --prompt_file."""
    if options.batch < 1:
        raise ValueError(f"--batch {options.batch}: at least one prompt goes through at a time")
    lines = []
    if options.prompt_file is not None:
        lines = options.prompt_file.read_text(encoding="utf-8").splitlines()
    prompts = [*options.prompt, *(line for line in lines if line)]
    if not prompts:
        raise ValueError("there is no prompt: give --prompt TEXT or --prompt_file with lines")
    return prompts


def open_tokenizer(path: str) -> Tokenizer:
    """The tokenizer, asked for where the run's configuration names none."""
    if not path:
        raise ValueError("--tokenizer is needed: the run's configuration has no data.tokenizer")
    return load_tokenizer(path)


def pick_device(wanted: str) -> torch.device:
    """Device for --device = auto, cpu or cuda."""
    import torch

    seen = torch.cuda.is_available()
    if wanted == "cuda" and not seen:
        raise ValueError("--device cuda: torch sees no GPU: take --device cpu")
    return torch.device("cpu" if wanted == "cpu" or not seen else "cuda")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="checkpoint, or folder of some"
    )
    parser.add_argument("--prompt", nargs="+", default=[], help="texts to continue")
    parser.add_argument("--prompt_file", type=Path, help="file with a text to continue a line")
    parser.add_argument("--batch", type=int, default=16, help="prompts at a time")
    parser.add_argument(
        "--tokenizer",
        default="",
        help="its tokenizer, if not the run's own",
    )
    parser.add_argument("--length", type=int, default=100, help="most tokens to add")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest token"
    )
    parser.add_argument("--top-p", type=float, default=0.95, help="nucleus sampling")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(tool(main))
