"""One reader under libFuzzer: python -m tests.fuzz.with_atheris TARGET [--inputs N] [--corpus DIR]

Atheris watches which branches of the readers an input reaches, and goes on from those that reach
new ones; half of its inputs are changed by its own rules, half by ours, which know JSON. Ends with
exit code 0 after N inputs, with libFuzzer's report at the first error that is not our own.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["megatron_ngpt"]):
    from tests.fuzz.targets import NAMES, target

from tests.fuzz.run import outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES, metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--inputs", type=int, default=10_000, help="[10000]")
    parser.add_argument("--corpus", type=Path, help="where inputs that reached something are kept")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    tried = target(options.name, folder)
    corpus = options.corpus or folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(tried.seeds):
        (corpus / f"seed_{number}").write_bytes(seed)

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        if seed % 2:
            return atheris.Mutate(content, longest)
        return tried.mutate(content, random.Random(seed))[:longest]

    limits = [f"-runs={options.inputs}", "-timeout=10", "-rss_limit_mb=4096", "-max_len=8192"]
    report = f"-artifact_prefix={folder}/"
    atheris.Setup(
        [sys.argv[0], *limits, report, str(corpus)],
        lambda content: outcome(tried, content),
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
