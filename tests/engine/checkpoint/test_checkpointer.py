import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors import safe_open

from megatron_ngpt.config import parse_config, save_config
from megatron_ngpt.engine.checkpoint import checkpointer as room
from megatron_ngpt.engine.checkpoint import storage
from megatron_ngpt.engine.checkpoint.checkpointer import Checkpointer
from megatron_ngpt.engine.checkpoint.index import checksum, read_index
from megatron_ngpt.engine.checkpoint.weights import load_weights
from megatron_ngpt.run.checkpoints import Progress
from megatron_ngpt.run.failed import SaveFailed
from tests.distributed import run
from tests.engine.checkpoint.saving import (
    advance,
    at,
    build,
    names,
    resume_told,
    same,
    save_steps,
)
from tests.jobs import stored_state, whole_state, words


def _train_while_saving(mesh, folder: Path):
    engine, checkpointer = build(mesh, folder)
    advance(engine, [1])
    then, go_on = whole_state(engine), threading.Event()
    begin = room.begin
    room.begin = lambda *place: (go_on.wait(), begin(*place))[1]
    checkpointer.save(at(1))
    advance(engine, [2, 3])
    unfinished = not checkpointer.pending.done()
    # the next save must wait for this one: they share the copies on the CPU
    threading.Timer(0.3, go_on.set).start()
    now = whole_state(engine)
    checkpointer.save(at(3))
    checkpointer.close()
    saved = checkpointer.folder
    return (
        unfinished,
        same(then, stored_state(saved / "step_00000001")),
        same(now, stored_state(saved / "step_00000003")),
    )


def test_training_goes_on_during_a_save_and_does_not_change_it(tmp_path):
    assert run(2, _train_while_saving, tmp_path) == [(True, True, True)] * 2


def _save_both_ways(mesh, folder: Path):
    found = []
    for way in (True, False):
        sections = {"checkpoint": {"asynchronous": way}}
        engine, checkpointer = build(mesh, folder / str(way), **sections)
        advance(engine, [1, 2])
        checkpointer.save(at(2))
        done_at_once = checkpointer.pending is None
        checkpointer.close()
        found.append((done_at_once, stored_state(checkpointer.folder / "step_00000002")))
    return found


def test_saved_in_the_background_or_not_is_the_same(tmp_path):
    for (background, one), (waited, other) in run(2, _save_both_ways, tmp_path):
        assert (background, waited) == (False, True)
        assert one.keys() == other.keys()
        trained = [name for name in one if not name.startswith("rng/")]
        assert all(torch.equal(one[name], other[name]) for name in trained)


def _keep_some(mesh, folder: Path):
    found = []
    for keep in (2, 0):
        engine, checkpointer = build(mesh, folder / f"{keep}", checkpoint={"keep": keep})
        save_steps(engine, checkpointer, range(1, 6))
        found.append(names(checkpointer.folder))
        latest = (checkpointer.folder / "latest").read_text()
        assert latest == "step_00000005\n", latest
    return found


def test_the_newest_are_kept(tmp_path):
    two, everything = run(1, _keep_some, tmp_path)[0]
    assert two == ["latest", "step_00000004", "step_00000005"]
    assert everything == ["latest", *(f"step_{n:08d}" for n in range(1, 6))]


def _fail(*_):
    raise OSError(28, "No space left on device")


def _failing_saves(mesh, folder: Path, where: str):
    engine, checkpointer = build(mesh, folder)
    save_steps(engine, checkpointer, [1])
    real = storage.files.write, room.begin, room.publish
    if where == "file of rank 1" and mesh.rank == 1:
        storage.files.write = _fail
    if where == "begin":
        room.begin = _fail
    if where == "publish":
        room.publish = _fail
    told = []
    for finishing in (lambda: checkpointer.save(at(3)), checkpointer.close):
        checkpointer.save(at(2))
        advance(engine, [2])
        with pytest.raises(SaveFailed) as error:
            finishing()
        told.append(str(error.value))
    visible = [name for name in names(checkpointer.folder) if not name.startswith(".")]
    storage.files.write, room.begin, room.publish = real
    progress, problems = resume_told(Checkpointer(engine.config, engine))
    dist.barrier()
    return told, visible, progress, problems, names(checkpointer.folder)


@pytest.mark.parametrize("where", ["file of rank 1", "begin", "publish"])
def test_a_failed_save_is_raised_on_every_rank_and_changes_nothing(tmp_path, where):
    rank = 1 if where == "file of rank 1" else 0
    before = ["latest", "step_00000001"]
    for told, visible, progress, problems, after in run(2, _failing_saves, tmp_path, where):
        for message in told:
            assert "the checkpoint of step 2 could not be written" in message
            assert f"rank {rank}: OSError(28, 'No space left on device')" in message
        assert (visible, progress, problems, after) == (before, at(1), "", before)


DAMAGES = {
    "missing file": lambda folder: (folder / "rank_00001_0.safetensors").unlink(),
    "truncated file": lambda folder: _cut(folder / "rank_00001_0.safetensors"),
    "flipped bit": lambda folder: _flip(folder / "rank_00000_0.safetensors"),
    "flipped bit of rank 1": lambda folder: _flip(folder / "rank_00001_0.safetensors"),
    "no index": lambda folder: (folder / "index.json").unlink(),
    "garbage index": lambda folder: (folder / "index.json").write_bytes(b"\xff\x00{"),
    "index of another kind": lambda folder: (folder / "index.json").write_text("[1, 2]"),
    "flipped digit of the index": lambda folder: _edit(folder / "index.json", "   0", "   1"),
    "half an index": lambda folder: (folder / "index.json").write_text('{"format": 1}'),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "other state": lambda folder: (folder / "state.json").write_text('{"step": 7, "tokens": 9}'),
    "no config": lambda folder: (folder / "config.yaml").unlink(),
    "empty config": lambda folder: (folder / "config.yaml").write_text(""),
    "empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
}


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    content[8 + header + 100] ^= 1  # in the first tensor; the last ones are random states
    path.write_bytes(content)


def _resume_damaged(mesh, folder: Path):
    """For every kind of damage to the newer of two checkpoints: what resuming does."""
    engine, checkpointer = build(mesh, folder)
    states = save_steps(engine, checkpointer, [1, 2])
    saved, template = checkpointer.folder, folder / "template"
    found = {}
    if mesh.rank == 0:
        shutil.copytree(saved, template)
    for kind, damage in DAMAGES.items():
        if mesh.rank == 0:
            shutil.rmtree(saved)
            shutil.copytree(template, saved)
            damage(saved / "step_00000002")
        dist.barrier()
        progress, told = resume_told(checkpointer)
        good = same(states[1], whole_state(engine))
        left = (names(saved), (saved / "latest").read_text()) if mesh.rank == 0 else ()
        found[kind] = progress, good, told, *left
        dist.barrier()
    return found


def test_a_damaged_checkpoint_is_reported_set_aside_and_passed_over(tmp_path):
    first, second = run(2, _resume_damaged, tmp_path)
    for kind in DAMAGES:
        progress, good, told, found, latest = first[kind]
        assert (progress, good) == (at(1), True), kind
        assert told.startswith("damaged checkpoint, moved to "), kind
        assert "damaged_step_00000002: " in told, kind
        assert told.count("\n") == 1, kind
        assert found == ["damaged_step_00000002", "latest", "step_00000001"], kind
        assert latest == "step_00000001\n", kind
        assert second[kind][:3] == (at(1), True, ""), f"{kind}: rank 1 has its part and is silent"
    assert "rank_00001_0.safetensors is missing" in first["missing file"][2]
    assert "bytes" in first["truncated file"][2]
    assert "rank_00000_0.safetensors: its content is not" in first["flipped bit"][2]
    assert "rank_00001_0.safetensors: its content is not" in first["flipped bit of rank 1"][2]
    assert "state.json is missing" in first["no state"][2]


def _resume_unverified(mesh, folder: Path):
    engine, checkpointer = build(mesh, folder, checkpoint={"verify": False})
    states = save_steps(engine, checkpointer, [1, 2])
    newest = checkpointer.folder / "step_00000002"
    _flip(newest / "rank_00000_0.safetensors")
    flipped = resume_told(checkpointer), same(states[2], whole_state(engine))
    _cut(newest / "rank_00000_0.safetensors")
    return flipped, resume_told(checkpointer)


def test_without_verify_sizes_are_checked_and_contents_are_not(tmp_path):
    flipped, cut = run(1, _resume_unverified, tmp_path)[0]
    assert flipped == ((at(2), ""), False)
    assert cut[0] == at(1)
    assert "damaged checkpoint" in cut[1]


def _resume_nothing(mesh, folder: Path):
    engine, checkpointer = build(mesh, folder)
    fresh, silence = resume_told(checkpointer)
    initial = whole_state(engine)
    save_steps(engine, checkpointer, [1, 2])
    if mesh.rank == 0:
        for checkpoint in checkpointer.folder.glob("step_*"):
            (checkpoint / "index.json").unlink()
    dist.barrier()
    engine, checkpointer = build(mesh, folder, checkpoint={"start_over": True})
    progress, told = resume_told(checkpointer)
    dist.barrier()
    unchanged = same(initial, whole_state(engine))
    return fresh, silence, progress, told, unchanged, names(checkpointer.folder)


def test_when_all_are_damaged_it_says_that_training_starts_anew(tmp_path):
    (fresh, silence, progress, told, unchanged, found), other = run(2, _resume_nothing, tmp_path)
    assert (fresh, silence) == (Progress(), "")
    assert (progress, unchanged) == (Progress(), True)
    assert [line.partition(",")[0] for line in told.splitlines()[:2]] == ["damaged checkpoint"] * 2
    assert told.splitlines()[2].endswith("TRAINING STARTS FROM THE BEGINNING")
    assert found == ["damaged_step_00000001", "damaged_step_00000002"]
    assert other[2:5] == (Progress(), "", True)


def _refusals(mesh, folder: Path):
    engine, checkpointer = build(mesh, folder)
    save_steps(engine, checkpointer, [1])
    told = []
    for sections in (
        {"model": {"layers": 3}},
        {"model": {"s_qk.init": 2.0}},
        {"model": {"architecture": "gpt"}},
    ):
        with pytest.raises(ValueError, match=r"model\.") as error:
            build(mesh, folder, **sections)[1].resume()
        told.append(str(error.value))
    index = checkpointer.folder / "step_00000001" / "index.json"
    if mesh.rank == 0:
        content = read_index(index.parent) | {"format": 2}
        index.write_text(json.dumps(content | {"crc32": checksum(content)}))
    dist.barrier()
    with pytest.raises(ValueError, match="format") as error:
        checkpointer.resume()
    return [*told, str(error.value)], names(checkpointer.folder)


def test_another_model_or_format_is_refused_and_stays_where_it_is(tmp_path):
    for told, found in run(2, _refusals, tmp_path):
        layers, scale, architecture, form = told
        assert "model.layers = 3, but" in layers
        assert "was trained with 2: set it so" in layers
        assert "model.s_qk = {'init': 2.0" in scale
        assert "model.architecture = gpt" in architecture
        assert "is of format 2, this version reads format 1" in form
        assert found == ["latest", "step_00000001"]


def test_a_setting_that_an_old_checkpoint_lacks_was_at_its_default(tmp_path):
    def now(**model):
        return parse_config(words("no corpus is read", tmp_path, model=model))

    save_config(now(), tmp_path / "config.yaml")
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for name in ("value_residual", "kv_heads", "s_z"):
        del content["model"][name]
    del content["model"]["s_qk"]["shared"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    room._check_model(now(), tmp_path)
    for model, told in (
        ({"value_residual": True}, "model.value_residual = True, .* was trained with False: set"),
        ({"kv_heads": 1}, "model.kv_heads = 1, .* was trained with 3: set"),
        ({"s_z.init": 2.0}, "model.s_z = {'init': 2.0, .* was trained with {'init': 1.0, "),
        ({"s_qk.shared": True}, "model.s_qk = "),
    ):
        with pytest.raises(ValueError, match=told):
            room._check_model(now(**model), tmp_path)


def _random_numbers(mesh, folder: Path, here: bool):
    """Numbers drawn after a save, and again after resuming it."""
    torch.manual_seed(mesh.rank)
    engine, checkpointer = build(mesh, folder)
    if here:
        save_steps(engine, checkpointer, [1])
        drawn = torch.rand(3)
        torch.manual_seed(99)
    else:
        torch.manual_seed(99)
        drawn = torch.rand(3)
        torch.manual_seed(99)
    checkpointer.resume()
    return drawn.tolist(), torch.rand(3).tolist()


def test_random_state_comes_back_on_as_many_ranks_and_stays_otherwise(tmp_path):
    answers = run(2, _random_numbers, tmp_path, True)
    for drawn, again in answers:
        assert drawn == again
    assert answers[0] != answers[1]
    drawn, again = run(1, _random_numbers, tmp_path, False)[0]
    assert drawn == again


def _small_files(mesh, folder: Path):
    storage.FILE_BYTES = 4000
    engine, checkpointer = build(mesh, folder)
    state = save_steps(engine, checkpointer, [1])[1]
    advance(engine, [2])
    progress = checkpointer.resume()
    return state, progress == at(1) and same(state, whole_state(engine))


def test_files_of_a_checkpoint(tmp_path):
    """Several files per rank, every one listed, of formats that cannot carry code."""
    state, resumed = run(2, _small_files, tmp_path)[1]
    assert resumed
    checkpoint = tmp_path / "checkpoints" / "step_00000001"
    index = json.loads((checkpoint / "index.json").read_text())
    others = {"config.yaml", "state.json"}
    assert {"index.json", *index["files"]} == set(names(checkpoint))
    tensors = set(index["files"]) - others
    assert {name.partition("_")[2][:5] for name in tensors} == {"00000", "00001"}
    assert len(tensors) > 6
    assert all(name.endswith(".safetensors") for name in tensors)
    for name in tensors:
        with safe_open(checkpoint / name, "pt") as file:  # refuses anything but its own format
            assert list(file.keys())
    assert json.loads((checkpoint / "state.json").read_text())["topology"]["dp"] == 2
    assert yaml.safe_load((checkpoint / "config.yaml").read_text())["model"]["width"] == 30
    assert same(state, stored_state(checkpoint))

    masters = {k.removeprefix("master/"): v for k, v in state.items() if k.startswith("master/")}
    loaded = load_weights(checkpoint, {name: tuple(v.shape) for name, v in masters.items()})
    assert loaded.keys() == masters.keys()
    assert same(loaded, masters)
    shutil.rmtree(checkpoint)
