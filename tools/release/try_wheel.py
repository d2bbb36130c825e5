"""An installed wheel trains: python tools/release/try_wheel.py VERSION, in an empty folder.

tools/release.sh runs it with the Python of a fresh environment.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
STEPS = 30


def main() -> int:
    """Train a small nGPT to count, with the package that is installed."""
    import megatron_ngpt

    installed = Path(megatron_ngpt.__file__).parent
    if installed == CHECKOUT / "megatron_ngpt" or "site-packages" not in installed.parts:
        raise SystemExit(f"{installed} is the checkout, not the wheel")
    if not version("megatron-ngpt") == megatron_ngpt.__version__ == sys.argv[1]:
        raise SystemExit(f"{installed} is {megatron_ngpt.__version__}, not {sys.argv[1]}")
    losses = _train()
    if len(losses) != STEPS or not losses[-1] < losses[0] - 0.5:
        raise SystemExit(f"the loss does not fall: {losses}")
    print(
        f"3  Python {sys.version.split()[0]}, torch {version('torch')}: {STEPS} steps, loss "
        f"{losses[0]:.2f} to {losses[-1]:.2f}"
    )
    return 0


def _train() -> list[float]:
    """Loss of every step of a run on a corpus of counted numbers."""
    from megatron_ngpt.data.indexed import IndexedWriter, dtype_for

    draw = random.Random(1)
    with IndexedWriter("counted", dtype_for(vocab_size=64)) as writer:
        for _ in range(400):
            start = draw.randrange(64)
            writer.add_document([(start + i) % 64 for i in range(64)])
    shutil.copy(CHECKOUT / "pretrain_ngpt.py", ".")  # beside it lies no package
    settings = {
        **{"model.width": 64, "model.layers": 2, "model.heads": 4, "model.vocab_size": 64},
        **{"data.train": "counted", "data.seq_len": 64, "optim.lr": 0.01},
        **{"train.steps": STEPS, "train.global_batch": 8, "train.micro_batch": 8},
        **{"logging.dir": "run", "engine.device": "cpu"},
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    run = subprocess.run([sys.executable, "pretrain_ngpt.py", *words], capture_output=True)
    if run.returncode:
        raise SystemExit(f"pretrain_ngpt.py ended with {run.returncode}:\n{run.stderr.decode()}")
    records = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


if __name__ == "__main__":
    raise SystemExit(main())
