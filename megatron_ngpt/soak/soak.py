"""Kills, stops and damages, one after another, and the same end as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_ngpt.data.indexed import IndexedWriter
from megatron_ngpt.run.attempts import read_attempts, read_metrics
from megatron_ngpt.run.checkpoints import checkpoints, step_of
from megatron_ngpt.soak.bomb import Bomb, Faults
from megatron_ngpt.soak.start import Start

KINDS = ("kill", "stop", "clock", "slow", "damage", "full")
"""Faults that can be asked for."""
SAME = ("loss", "grad_norm", "lr", "tokens", "valid_loss")
"""Of each step's record, what must be equal to the last bit."""
_VOCABULARY = 61


class SoakFailed(AssertionError):
    """Something that was committed is lost, or the end is another one."""


@dataclass
class Soak:
    """Runs a tiny model again and again under faults.

    Args:
        folder: where runs lie; empty.
        kills: ranks to kill in all.
        kinds: of KINDS.
        ranks: processes of the run.
        steps: of each run; another one begins when it is done and kills are left.
        seed: of everything that is drawn.
        tell: is given a line for every start.
    """

    folder: Path
    kills: int
    kinds: tuple[str, ...] = KINDS
    ranks: int = 2
    steps: int = 40
    seed: int = 1
    tell: Callable[[str], None] = print
    counts: Counter[str] = field(default_factory=Counter)
    """Of everything that was done and seen."""
    damaged: set[str] = field(default_factory=set)
    """Names of checkpoints that the run under way has not noticed yet."""
    killed_while: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def go(self) -> None:
        """Until all kills are done and the last run is at its end.

        Raises:
            SoakFailed: naming what is not as it should be.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        corpus = _write_corpus(self.folder)
        whole = self.folder / "undisturbed"
        codes = self._start(self._words(corpus, whole), whole, Bomb(), Faults())
        _expect(codes == [0] * self.ranks, f"the undisturbed run ended with {codes}", whole)
        while self.counts["kills"] < self.kills:
            self.counts["runs"] += 1
            run = self.folder / f"run_{self.counts['runs']:03d}"
            self._one_run(self._words(corpus, run), run)
            self._check_end(run, whole)
            shutil.rmtree(run)

    def _one_run(self, words: list[str], run: Path) -> None:
        ended, committed = False, 0
        while not ended:
            full = self._has("full", 0.06)
            last = self.counts["kills"] >= self.kills
            bomb = Bomb() if last or full else self._bomb(resumes=committed > 0)
            faults = self._faults(full)
            if not last and self._damage(run):
                committed = self._committed(run)
            before = len(read_attempts(run))
            codes = self._start(words, run, bomb, faults)
            ended = codes == [0] * self.ranks
            self._check_start(run, codes, full)
            before_it, committed = committed, self._committed(run)
            _expect(committed >= before_it, f"of {before_it} saved, {committed} is left", run)
            steps = {int(record["step"]) for record in read_metrics(run)}
            _expect(steps >= set(range(1, committed + 1)), "records are lost", run)
            _expect(len(read_attempts(run)) <= before + 1, "attempts are counted twice", run)

    def _start(self, words: list[str], run: Path, bomb: Bomb, faults: Faults) -> list[int]:
        run.mkdir(parents=True, exist_ok=True)
        bombs = [Bomb()] * self.ranks
        bombs[0 if bomb.on_rank_0 else self.chance.randrange(1, self.ranks)] = bomb
        began, kills = time.monotonic(), run / "kills.txt"
        seen = len(_lines(kills))
        stop = 0.1 if "stop" in self.kinds and self.chance.random() < 0.25 else 0.0
        start = Start(words, bombs, faults, run)
        try:
            codes = start.wait(self.chance.choice([0.0, 0.0, 0.5, 5.0]), self.chance, stop)
        finally:
            start.kill()
        self.counts["starts"] += 1
        for line in _lines(kills)[seen:]:
            doing, kind, why = line.split("\t")
            self.killed_while[doing] += 1
            self.counts["kills"] += 1
            self.counts["kills at a change of the file system"] += kind == "file"
            self.tell(f"kill {self.counts['kills']}: while {doing}: {why}")
        for name, there in (
            ("starts with ranks stopped for a moment", stop),
            ("starts with a clock that jumps by days", faults.wild_clock),
            ("starts on a slow disk", faults.slow_disk),
            ("starts on a full disk", faults.largest_file >= 0),
        ):
            self.counts[name] += bool(there)
        self.tell(f"start {self.counts['starts']}: {codes}, {time.monotonic() - began:.1f} s")
        return codes

    def _bomb(self, resumes: bool) -> Bomb:
        first = self.ranks == 1 or self.chance.random() < 0.5
        kinds = ["clock", "file", "file", "file", "step", "evaluation", "checkpoint"]
        kind = self.chance.choice([*kinds, "resume"] if resumes else kinds)
        count, delay = 1, self.chance.uniform(0, 0.05)
        if kind == "clock":
            delay = self.chance.uniform(0, 2)
        if kind == "file":  # rank 0 changes more: its claim, its records, names of checkpoints
            count = self.chance.randint(1, 60 if first else 10)
        if kind == "step":
            count = self.chance.randint(1, 9)
        return Bomb(kind, count, delay, first)

    def _faults(self, full: bool) -> Faults:
        return Faults(
            slow_disk=0.1 if self._has("slow", 0.2) else 0.0,
            wild_clock=self.chance.randint(1, 1 << 30) if self._has("clock", 0.25) else 0,
            largest_file=self.chance.randint(0, 20_000) if full else -1,
        )

    def _has(self, kind: str, share: float) -> bool:
        return kind in self.kinds and self.chance.random() < share

    def _sound(self, run: Path) -> list[Path]:
        """Checkpoints that nobody has damaged, newest first."""
        for aside in (run / "checkpoints").glob("damaged_step_*"):
            self.damaged.discard(aside.name.removeprefix("damaged_"))
            shutil.rmtree(aside)
        return [path for path in checkpoints(run / "checkpoints") if path.name not in self.damaged]

    def _committed(self, run: Path) -> int:
        """Step of the newest of them; 0 when there is none."""
        return max(map(step_of, self._sound(run)), default=0)

    def _damage(self, run: Path) -> bool:
        """Flip a bit of the newest checkpoint, or cut or delete a file of it, now and then."""
        found = self._sound(run)
        if len(found) < 2 or not self._has("damage", 0.1):
            return False
        path = self.chance.choice(sorted(found[0].iterdir()))
        how = self.chance.choice(["a bit flipped", "cut short", "deleted"])
        content = bytearray(path.read_bytes())
        if how == "deleted":
            path.unlink()
        elif how == "cut short":
            path.write_bytes(content[: self.chance.randrange(len(content))])
        else:
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            path.write_bytes(content)
        self.damaged.add(path.parent.name)
        self.counts[f"files of a checkpoint {how}"] += 1
        self.tell(f"damage: {how}: {path.parent.name}/{path.name}")
        return True

    def _check_start(self, run: Path, codes: list[int], full: bool) -> None:
        """Ranks end well, or killed, or because another one did; by a message, if by themselves."""
        allowed = {0, 1, -9} | ({2} if full else set())
        _expect(set(codes) <= allowed, f"ranks ended with {codes}", run)
        said = (run / "output.txt").read_text(encoding="utf-8", errors="replace")
        aside = said.count("damaged checkpoint, moved to")
        known = sum(n for name, n in self.counts.items() if name.startswith("files of"))
        _expect(aside <= known, "a checkpoint counts as damaged that nobody damaged", run)

    def _check_end(self, run: Path, whole: Path) -> None:
        from megatron_ngpt.engine.checkpoint.difference import differences

        ours, theirs = read_metrics(run), read_metrics(whole)
        for one, other in zip(ours, theirs, strict=True):
            apart = [n for n in SAME if one.get(n) != other.get(n)]
            _expect(not apart, f"step {other['step']}: {apart} differ", run)
        last = Path("checkpoints", f"step_{self.steps:08d}")
        found = [difference.name for difference in differences(run / last, whole / last)]
        _expect(not found, f"values of {found} differ at the end", run)
        self.counts["runs that ended bit-equal"] += 1

    def _words(self, corpus: str, run: Path) -> list[str]:
        settings = {
            **{"model.width": 16, "model.layers": 1, "model.heads": 2, "model.ffn_width": 20},
            **{"model.vocab_size": _VOCABULARY, "optim.lr": 0.02, "data.seq_len": 16},
            **{"data.train": corpus, "data.valid_fraction": 0.1, "logging.dir": run},
            **{"train.steps": self.steps, "train.global_batch": 4, "train.micro_batch": 2},
            **{"eval.every": 3, "eval.steps": 1, "checkpoint.every": 2, "checkpoint.keep": 3},
            **{"engine.device": "cpu", "engine.ops": "reference", "train.hang_timeout": 60},
        }
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    def report(self) -> Iterator[str]:
        """Figures, a line each."""
        for name, count in self.counts.items():
            if count:
                yield f"{count:6}  {name}"
        for doing, count in self.killed_while.most_common():
            yield f"{count:6}  of the kills while: {doing}"


def _write_corpus(folder: Path) -> str:
    """Prefix of a pair whose texts count upwards from a random id, so that losses fall soon."""
    draw, prefix = np.random.default_rng(5), folder / "corpus"
    with IndexedWriter(prefix, "uint16") as writer:
        for _ in range(60):
            first, length = draw.integers(_VOCABULARY), draw.integers(20, 60)
            writer.add_document((first + np.arange(length)) % _VOCABULARY)
    return str(prefix)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _expect(holds: bool, what: str, run: Path) -> None:
    if not holds:
        said = _lines(run / "output.txt")[-40:]
        raise SoakFailed(f"{run}: {what}\n" + "\n".join(said))
