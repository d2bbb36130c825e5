"""Replay a trace of somebody else's nGPT and print how far ours is from it.

    python tools/verify_golden.py FILE.safetensors
    torchrun --nproc-per-node 2 tools/verify_golden.py FILE.safetensors --zero_stage 3
    torchrun --nproc-per-node 4 tools/verify_golden.py FILE.safetensors --tp 2 --pp 2

FILE.json beside it holds the configuration. A training trace of NVIDIA/ngpt holds initial weights,
tokens, logits and gradients of step 0 and final weights, its JSON every step's loss and gradient
norm. A trace of the Hugging Face port holds weights, logits and greedy continuations, one of
nGPT-pytorch weights and logits, one of Microsoft's differential attention a module's weights, input
and output and the gradient of its input. Exit code 1 when a difference is above its tolerance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_ngpt.console import tool
from megatron_ngpt.mesh.launch import finish


def main() -> int:
    """Run the trace on every rank; 0 when all differences are within tolerance."""
    options = _options()
    from megatron_ngpt.interop.golden import verify  # with torch, which --help does not wait for

    return verify(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trace", type=Path, help="NAME.safetensors with NAME.json beside it")
    parser.add_argument("--zero_stage", type=int, default=1, choices=range(4))
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel degree")
    parser.add_argument("--pp", type=int, default=1, help="pipeline-parallel degree")
    parser.add_argument("--schedule", default="1f1b", help="of the pipeline")
    return parser.parse_args()


if __name__ == "__main__":
    finish(tool(main))
