"""The folder of an unfinished job: what each finished shard has become."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_ngpt.data.pairs.manifest import write_json
from megatron_ngpt.data.preprocess.lock import next_number
from megatron_ngpt.data.preprocess.plan import Shard
from megatron_ngpt.data.sources import Refusal


@dataclass
class Report:
    """What a shard has become; its file appears when the shard is finished, and means that."""

    files: str
    """Beginning of the names of its files."""

    documents: int = 0
    pairs: dict[str, tuple[int, int, int, int, int]] = field(default_factory=dict)
    """Of each key: sequences, documents, tokens, CRC-32 of the tokens' file, largest id."""

    size: int = 0
    """Bytes read, decompressed."""

    refused: Counter[str] = field(default_factory=Counter)
    """Records left out, by reason."""

    special: Counter[str] = field(default_factory=Counter)
    """Of each key: documents that spell out a special token."""

    records: dict[str, int] = field(default_factory=dict)
    """Records read from each piece, used or not, by path."""

    @property
    def tokens(self) -> int:
        """Of all keys."""
        return sum(tokens for _, _, tokens, *_ in self.pairs.values())

    def add(self, documents: int, size: int, refusals: Iterable[Refusal]) -> None:
        """Count a batch that has been written."""
        self.documents += documents
        self.size += size
        self.refused.update(refusal.reason for refusal in refusals)


class Parts:
    """The folder ``PREFIX.parts``.

    A shard's files have names of their own at every attempt: a process whose job was killed and
    that has not noticed yet must not write into files of the job that goes on.

    Args:
        folder: its path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, output_prefix: str) -> Parts:
        """Those of the job with this output."""
        return cls(Path(f"{output_prefix}.parts"))

    @property
    def begun(self) -> bool:
        """Whether there is an unfinished job."""
        return self._mark.exists()

    @property
    def finished(self) -> int:
        """How many shards are finished."""
        return len(list(self.folder.glob("[0-9]*.json")))

    def begin(self, identity: dict[str, Any], shards: Sequence[Shard]) -> dict[int, Report]:
        """Make the folder, or go on with the one that is there.

        Args:
            identity: what the output depends on.
            shards: of the job.

        Returns:
            The shards that are finished, by number.

        Raises:
            ValueError: when what is there belongs to other options or other input.
        """
        if not self.begun:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_json(self._mark, identity)
            return {}
        if difference := _difference(json.loads(self._mark.read_text()), identity):
            raise ValueError(
                f"{self.folder} holds an unfinished job with other options: {difference}; repeat "
                "it with the options it began with, or delete that folder to begin anew"
            )
        (self.folder / "failed").unlink(missing_ok=True)
        done = {shard.number: self.report(shard.number) for shard in shards}
        finished = {number: report for number, report in done.items() if report}
        kept = {report.files for report in finished.values()}
        for path in self.folder.iterdir():
            if "@" in path.name and path.name.partition("+")[0] not in kept:
                path.unlink()
        return finished

    def name_files(self, number: int) -> str:
        """A beginning for the names of this process' files of a shard."""
        return f"{number:06d}@{socket.gethostname()}-{os.getpid()}"

    def prefix(self, files: str, key: str) -> Path:
        """Prefix of the pair of a shard and key."""
        return self.folder / f"{files}+{key}"

    def refusals(self, files: str) -> Path:
        """The list of a shard's refused records, JSON Lines."""
        return self.folder / f"{files}+refused.jsonl"

    def finish(self, number: int, report: Report) -> None:
        """Declare a shard finished."""
        write_json(self._path(number), vars(report))

    def report(self, number: int) -> Report | None:
        """What a shard has become, or None while it is not finished."""
        path = self._path(number)
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        if found.keys() != {each.name for each in fields(Report)}:
            return None  # of another version of this program: made again
        counters = {name: Counter(found[name]) for name in ("refused", "special")}
        return Report(**{**found, **counters})

    def draw(self, shards: Sequence[Shard], attempt: str) -> Iterator[Shard]:
        """Shards of a list that all processes share, each of which comes to one of them.

        A process gets its next when it asks for it, so a slow one gets fewer. No more come when a
        process has told that the job failed, or when another attempt has begun.

        Args:
            shards: the same list in every process.
            attempt: name of the attempt, from ``begin_drawing``.
        """
        with suppress(FileNotFoundError):
            while not self.failed and (number := next_number(self.folder / attempt)) < len(shards):
                yield shards[number]

    def begin_drawing(self) -> str:
        """Begin a list, before any process draws; a killed job's processes still have their own."""
        name = f"drawn@{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
        (self.folder / name).touch()
        return name

    def fail(self) -> None:
        """Tell the other processes that the job is not to go on."""
        (self.folder / "failed").touch()

    @property
    def failed(self) -> bool:
        """Whether a process has told that."""
        return (self.folder / "failed").exists()

    def remove(self) -> None:
        """Delete the folder; one that is half deleted counts as none."""
        self._mark.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _mark(self) -> Path:
        return self.folder / "job.json"

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def _difference(was: dict[str, Any], now: dict[str, Any]) -> str:
    for name in now:
        if was.get(name) == now[name]:
            continue
        if name == "tokenizer-model":
            return "the file of --tokenizer-model has another content"
        if name == "input":
            before, after = ({one[0]: one for one in job[name]} for job in (was, now))
            changed = [p for p in {**before, **after} if before.get(p) != after.get(p)]
            return f"--input differs, for example {(changed or ['the order of files'])[0]}"
        return f"--{name} was {was.get(name)!r} and is {now[name]!r}"
    return ""
