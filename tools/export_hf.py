"""Export a checkpoint for Hugging Face: python tools/export_hf.py --checkpoint DIR --output DIR"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_ngpt.console import tool
from megatron_ngpt.run.checkpoints import find_checkpoint
from megatron_ngpt.run.durable import DamagedCheckpoint

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Names that torch has for them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was written; 2 when it cannot be."""
    options = _options(argv)
    try:
        checkpoint = find_checkpoint(options.checkpoint)
        # brings torch along, which --help and a wrong folder do not wait for
        import torch

        from megatron_ngpt.interop.export import export
        from megatron_ngpt.interop.fold import fold_logit_scale

        count = export(
            checkpoint,
            options.output,
            dtype=getattr(torch, DTYPES[options.dtype]),
            file_bytes=round(options.file_gb * 1e9),
            tokenizer=options.tokenizer,
        )
        if options.fold_sz:
            fold_logit_scale(options.output)
    except (ValueError, OSError, ModuleNotFoundError, DamagedCheckpoint) as err:
        print(f"export_hf.py: {err}", file=sys.stderr)
        return 2
    files = sorted(path.name for path in options.output.iterdir())
    print(f"{checkpoint}: {count:,} parameters, {options.dtype} -> {options.output}")
    print(f"  {', '.join(files)}")
    if "tokenizer.json" not in files:
        print("  no tokenizer: the run names none; give --tokenizer FILE.model")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="checkpoint, or folder of some"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="fp32",
        help="of matrices; fp32 is exact, scaling vectors are fp32 always",
    )  # fmt: skip
    parser.add_argument(
        "--file-gb", type=float, default=2.0, help="most fp32 gigabytes per file, and in memory"
    )
    parser.add_argument("--tokenizer", default="", help="SentencePiece model, if not the run's own")
    parser.add_argument(
        "--fold-sz", action="store_true",
        help="multiply the head's rows by s_z and leave sz out, for vLLM; cannot be imported",
    )  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(tool(main))
