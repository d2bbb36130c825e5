"""Before the first step: do all ranks mean the same run, and do they see the same folders?

A stale copy of a configuration, of the code or of a corpus on one node trains without a word and
gives a model that nobody asked for. Cost: the package's sources are read once (about 1 MB) and
128 kB of every file of a corpus; 32 bytes go over all ranks, and the facts themselves only where
they differ.
"""

from __future__ import annotations

import hashlib
import json
import socket
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

import megatron_ngpt
from megatron_ngpt.config import Config
from megatron_ngpt.data.corpus import Share, Stage
from megatron_ngpt.run.ledger import flat, package_versions, plain

MAY_DIFFER = ("data.cache_dir",)
"""Settings about a node's own disk."""

_SAMPLE = 1 << 16

Facts = dict[str, str]


def agree(config: Config, stages: Sequence[Stage], valid: Sequence[Share]) -> None:
    """Raise ValueError on every rank unless all mean the same run; collective.

    Args:
        config: of this rank, with everything filled in.
        stages: what this rank trains on.
        valid: what it validates on.
    """
    shares = [*(share for stage in stages for share in stage.shares), *valid]
    prefixes = dict.fromkeys(str(share.corpus.dataset.prefix) for share in shares)
    mine = {**_settings(config), **_files(config), **_software(), **_corpora(prefixes)}
    if problems := differences(mine):
        raise ValueError(
            "ranks do not agree on what to train, as after a change that did not reach every node:"
            + "".join(f"\n  - {problem}" for problem in problems)
        )


def differences(mine: Facts) -> list[str]:
    """A line for every fact that is not the same on all ranks; collective."""
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).digest()
    here = torch.tensor(list(digest), dtype=torch.uint8)
    digests = [torch.empty_like(here) for _ in range(dist.get_world_size())]
    dist.all_gather(digests, here)
    if all(torch.equal(other, here) for other in digests):
        return []
    everyone: list[Facts] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    found = []
    for name in dict.fromkeys(name for facts in everyone for name in facts):
        ranks: dict[str, list[int]] = defaultdict(list)
        for rank, facts in enumerate(everyone):
            ranks[facts.get(name, "nothing")].append(rank)
        if len(ranks) > 1:
            told = (f"{value} on {_ranks(where)}" for value, where in ranks.items())
            found.append(f"{name}: {', '.join(told)}")
    return found


def _ranks(ranks: Iterable[int]) -> str:
    """``ranks 0-3, 6``."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    told = ", ".join(f"{one}" if one == last else f"{one}-{last}" for one, last in spans)
    return f"rank{'s' * (len(spans) > 1 or spans[0][0] != spans[0][1])} {told}"


def _settings(config: Config) -> Facts:
    """Every setting by its dotted name."""
    found = flat(plain(config.to_dict()))
    return {name: json.dumps(v) for name, v in found.items() if name not in MAY_DIFFER}


def _files(config: Config) -> Facts:
    """Content of the small files that settings name."""
    named = {
        "engine.deepspeed_overrides": config.engine.deepspeed_overrides,
        "data.tokenizer": config.data.tokenizer,
    }
    return {
        f"content of {setting} = {path}": hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        for setting, path in named.items()
        if path and Path(path).is_file()
    }


def _software() -> Facts:
    """The code and the packages that run it."""
    root, digest = Path(megatron_ngpt.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}".encode() + path.read_bytes())
    version = f"{megatron_ngpt.__version__} (sources {digest.hexdigest()[:12]})"
    return {"megatron_ngpt": version, **package_versions()}


def _corpora(prefixes: Iterable[str]) -> Facts:
    """Size and both ends of every file of every corpus."""
    found = {}
    for prefix in prefixes:
        endings = (".bin", ".idx", ".manifest.json")
        paths = [prefix] if prefix.endswith(".bin") else [prefix + ending for ending in endings]
        for path in filter(Path.is_file, map(Path, paths)):
            found[f"corpus {path}"] = _glance(path)
    return found


def _glance(path: Path) -> str:
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as stream:
        digest.update(stream.read(_SAMPLE))
        stream.seek(max(0, size - _SAMPLE))
        digest.update(stream.read(_SAMPLE))
    return f"{size} bytes, {digest.hexdigest()[:12]}"


def check_shared(folders: Mapping[str, Path], patience: float = 60.0) -> None:
    """Raise ValueError on every rank unless all see what rank 0 writes, and may write; collective.

    Args:
        folders: by the setting that names them; rank 0 has made them.
        patience: seconds for which a rank looks again: file systems of a network may show a new
            file late.
    """
    token = [f".seen_by_all_{uuid.uuid4().hex}"]
    dist.broadcast_object_list(token)
    places = {setting: folder / token[0] for setting, folder in folders.items()}
    rank, problem = dist.get_rank(), ""
    try:
        if rank == 0:
            for place in places.values():
                place.touch()
        dist.barrier()
        problem = _unseen(places, patience)
        told: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(told, problem)
    finally:
        if rank == 0:
            for place in places.values():
                place.unlink(missing_ok=True)
    if any(told):
        raise ValueError("\n".join(dict.fromkeys(text for text in told if text)))


def _unseen(places: Mapping[str, Path], patience: float) -> str:
    """What is wrong with the first folder in which something is, "" when all is well."""
    where = f"rank {dist.get_rank()} on {socket.gethostname()}"
    deadline = time.monotonic() + patience
    for setting, place in places.items():
        while not _appears(place):
            if time.monotonic() > deadline:
                return (
                    f"{setting} = {place.parent}: {where} does not see what rank 0 writes there: "
                    "put it on a file system that all nodes share"
                )
            time.sleep(0.2)
        try:
            tempfile.TemporaryFile(dir=place.parent).close()
        except OSError as err:
            return f"{setting} = {place.parent}: {where} can make no files there: {err}"
    return ""


def _appears(place: Path) -> bool:
    """Whether a file is there by now; listing its folder makes NFS ask the server again."""
    if place.exists():
        return True
    return place.parent.is_dir() and any(
        other.name == place.name for other in place.parent.iterdir()
    )
