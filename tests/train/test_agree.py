"""Ranks that mean different runs, or do not share a folder, are told so before the first step."""

import os
import shutil
import socket
from pathlib import Path

import numpy as np

from megatron_ngpt.config import parse_config
from megatron_ngpt.data.corpus import open_corpora
from megatron_ngpt.train import agree as agreeing
from megatron_ngpt.train.agree import agree, check_shared
from tests.distributed import run
from tests.jobs import command, started, words


def _refusal(mesh, by_rank: list[list[str]], version: str = "") -> str:
    """What this rank is told when each has its own command line."""
    if version and mesh.rank == 1:
        agreeing.megatron_ngpt.__version__ = version
    config = parse_config(by_rank[mesh.rank])
    try:
        agree(config, *open_corpora(config.data))
    except ValueError as err:
        return str(err)
    return ""


def asked(by_rank: list[list[str]], version: str = "") -> list[str]:
    told = run(len(by_rank), _refusal, by_rank, version)
    assert len(set(told)) == 1, "every rank says the same"
    return told[0].splitlines()


def test_ranks_that_agree(toy_corpus, tmp_path):
    ranks = [
        words(toy_corpus, tmp_path, data={"cache_dir": f"/disk/of/node{rank}"}) for rank in (0, 1)
    ]
    assert asked(ranks) == []


def test_every_setting_and_version_that_differs_is_named_with_its_ranks(toy_corpus, tmp_path):
    usual = words(toy_corpus, tmp_path)
    other = words(toy_corpus, tmp_path, train={"seed": 3}, optim={"lr": 0.5})
    first, *lines = asked([usual, other, usual], version="9.9")
    assert first.startswith("ranks do not agree on what to train")
    lr, seed, version = lines
    assert lr == "  - optim.lr: 0.02 on ranks 0, 2, 0.5 on rank 1"
    assert seed == "  - train.seed: 1234 on ranks 0, 2, 3 on rank 1"
    assert version.startswith("  - megatron_ngpt: ")
    assert "9.9 (sources " in version


def _on_own_disk(mesh, folder: Path, arguments: list[str]) -> str:
    os.chdir(folder / str(mesh.rank))
    return _refusal(mesh, [arguments] * 2)


def test_a_stale_copy_of_a_corpus_is_found(toy_corpus, tmp_path):
    """At the same relative path on two nodes; one token differs, sizes do not."""
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        for ending in (".bin", ".idx"):
            shutil.copy(toy_corpus + ending, tmp_path / str(rank) / f"c{ending}")
    assert run(2, _on_own_disk, tmp_path, words("c", tmp_path)) == ["", ""]
    np.memmap(tmp_path / "1/c.bin", "<u2", "r+")[-1] ^= 1
    told = run(2, _on_own_disk, tmp_path, words("c", tmp_path))[0]
    (line,) = told.splitlines()[1:]
    assert line.startswith("  - corpus c.bin: ")
    assert line.endswith(" on rank 1")


def _shared(mesh, folders: list[str], late: bool) -> str:
    if late and mesh.rank == 1:
        appears, looked = agreeing._appears, []
        agreeing._appears = lambda place: (len(looked) > 2 and appears(place)) or looked.append(0)
    try:
        check_shared({"checkpoint.dir": Path(folders[mesh.rank])}, patience=20 if late else 0.5)
    except ValueError as err:
        return str(err)
    return ""


def test_a_folder_that_ranks_do_not_share(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    one, other = (str(tmp_path / name) for name in "ab")
    assert run(2, _shared, [one, one], False) == ["", ""]
    assert run(2, _shared, [one, one], True) == ["", ""], "a file system may be late"
    told = run(2, _shared, [one, other], False)
    assert told[0] == told[1]
    assert told[0].startswith(
        f"checkpoint.dir = {other}: rank 1 on {socket.gethostname()} does not"
    )
    absent = str(tmp_path / "nowhere")
    assert "rank 1" in run(2, _shared, [one, absent], False)[0]
    assert not list(tmp_path.glob("[ab]/*")), "nothing is left behind"


def test_two_processes_with_other_seeds_train_nothing(toy_corpus, tmp_path):
    """As a user meets it: exit code 2 and one message, before any step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    argv = [command(words(toy_corpus, tmp_path, train={"seed": seed})) for seed in (1, 2)]
    ranks = [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    with (
        (tmp_path / "told").open("w+") as told,
        started(argv[0], env=ranks[0], stderr=told) as first,
        started(argv[1], env=ranks[1], stderr=told) as second,
    ):
        assert (first.wait(100), second.wait(100)) == (2, 2)
    assert "train.seed: 1 on rank 0, 2 on rank 1" in (tmp_path / "told").read_text()
    assert not (tmp_path / "metrics.jsonl").exists()
