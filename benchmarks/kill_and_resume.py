"""A corpus of any size through preprocessing, killed twice on the way, against an unbroken run.

    python -m benchmarks.kill_and_resume --gigabytes 5

The text is slices of random words, which cost the encoder about as much as prose. The job is
killed (kill -9, all its processes) when a third and two thirds of its shards are finished, started
again each time, and its pair compared with that of a job that was left alone. Needs about three
times the corpus on disk, in a folder that is removed at the end. Fails when a byte differs.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import table
from megatron_ngpt.data.pairs.manifest import read_manifest, verify
from megatron_ngpt.data.tokenizer import train_tokenizer

_TOOL = Path(__file__).resolve().parents[1] / "tools/preprocess_data.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Generate, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=5, help="size of the corpus [5]")
    parser.add_argument("--shard-mb", type=float, default=256, help="as in the tool [256]")
    parser.add_argument("--folder", type=Path, help="where to work [the system's for temporaries]")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        model = write_corpus(folder, int(options.gigabytes * 1e9))
        shards = int(options.gigabytes * 1000 / options.shard_mb)
        rows = []
        for run, kills in (("killed twice", [shards // 3, 2 * shards // 3]), ("left alone", [])):
            started = time.monotonic()
            command = _command(folder, model, run.split()[0], options.shard_mb)
            for finished in kills:
                _kill_after(command, folder / "killed.parts", finished)
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            rows.append([run, f"{time.monotonic() - started:.0f}"])
        pairs = [str(folder / f"{run}_text_document") for run in ("killed", "left")]
        for suffix in (".bin", ".idx", ".manifest.json"):
            same = filecmp.cmp(pairs[0] + suffix, pairs[1] + suffix, shallow=False)
            assert same, f"{pairs[0]}{suffix} differs"
        manifest = read_manifest(pairs[0])
        print(f"{manifest['documents']} documents, {manifest['tokens']} tokens; {verify(pairs[0])}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(table(["run", "seconds"], rows))
    print(f"every file is equal; the largest process took {peak:.0f} MiB")
    return 0


def write_corpus(folder: Path, size: int) -> Path:
    """Write shards of JSON Lines and a tokenizer to a folder; the same size gives the same."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    weights = [1 / (i + 2) for i in range(len(letters))]
    words = ["".join(rng.choices(letters, weights, k=rng.randrange(1, 11))) for _ in range(30_000)]
    pool = " ".join(rng.choices(words, k=4_000_000))
    model = folder / "words.model"
    train_tokenizer([pool[:2_000_000].replace(" ", "\n", 1000)], model, vocab_size=4096)
    written = 0
    with (folder / "corpus.jsonl").open("w", encoding="ascii") as file:
        while written < size:
            start = rng.randrange(len(pool) - 100_000)
            text = pool[start : start + rng.randrange(10, 20_000)]
            written += file.write(f'{{"text": "{text}"}}\n')
    return model


def _command(folder: Path, model: Path, run: str, shard_mb: float) -> list[str]:
    return [
        *(sys.executable, str(_TOOL), "--input", str(folder / "corpus.jsonl")),
        *("--tokenizer-model", str(model), "--output-prefix", str(folder / run)),
        *("--shard-mb", str(shard_mb)),
    ]


def _kill_after(command: Sequence[str], parts: Path, finished: int) -> None:
    job = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while len(list(parts.glob("0*[0-9].json"))) < finished:
        assert job.poll() is None, "the job ended before it was to be killed: lower --shard-mb"
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()


if __name__ == "__main__":
    raise SystemExit(main())
