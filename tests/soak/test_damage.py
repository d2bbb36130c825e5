"""What a run needs is damaged between two starts, or taken away under it; it ends the same."""

import shutil
import threading
import time

import pytest

from megatron_ngpt.run.checkpoints import checkpoints
from megatron_ngpt.soak.bomb import Bomb, Faults
from megatron_ngpt.soak.soak import Soak

pytestmark = pytest.mark.slow
KILLED = Bomb("step", 10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A soak that has trained the undisturbed run."""
    soak = Soak(tmp_path_factory.mktemp("soak"), kills=0, steps=12, tell=lambda _: None)
    soak.go()
    return soak


@pytest.fixture
def run(whole, tmp_path):
    """Starts of a run of its own: a bomb -> exit codes and what was said."""
    folder, corpus = tmp_path / "run", tmp_path / "corpus"
    for end in (".bin", ".idx"):
        shutil.copy(whole.folder / f"corpus{end}", f"{corpus}{end}")

    def start(bomb: Bomb = Bomb()) -> tuple[list[int], str]:  # noqa: B008
        output = folder / "output.txt"
        before = output.stat().st_size if output.exists() else 0
        codes = whole._start(whole._words(str(corpus), folder), folder, bomb, Faults())
        return codes, output.read_bytes()[before:].decode()

    start.folder, start.corpus = folder, corpus
    start.check_end = lambda: whole._check_end(folder, whole.folder / "undisturbed")
    return start


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("pattern", ["*.safetensors", "index.json", "config.yaml", "state.json"])
def test_a_checkpoint_is_damaged_and_the_one_before_it_taken(run, pattern):
    run(KILLED)
    newest = checkpoints(run.folder / "checkpoints")[0]
    _flip(sorted(newest.glob(pattern))[-1])
    codes, said = run()
    assert codes == [0, 0], said
    assert "damaged checkpoint, moved to" in said
    run.check_end()


def test_the_folder_of_checkpoints_vanishes_and_comes_back(run):
    place, away = run.folder / "checkpoints", run.folder / "away"

    def take() -> None:
        while not (place / "step_00000004").exists():
            time.sleep(0.005)
        place.rename(away)
        place.write_text("a server that answers no more")

    taker = threading.Thread(target=take)
    taker.start()
    codes, said = run()
    taker.join()
    assert 1 in codes, said
    assert "could not be written" in said
    place.unlink()
    away.rename(place)
    assert run()[0] == [0, 0]
    run.check_end()
