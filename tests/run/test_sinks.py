"""Every program that can be told of a run, the real package each, offline."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ngpt.run.metrics import RunLog, check_outputs
from tests.run.test_metrics import configured, log_steps, record

VITALS = {
    "scales": {"s_qk": {"mean": [1.0, 1.5], "max": [2.0, 2.5]}, "s_z": {"mean": [3.0]}},
    "stretch": 0.25,
    "rank_seconds": {"step": [0.5, 0.75], "slowest": {"rank": 1, "cost": 0.25}},
}
FLAT = {
    "rank_seconds/slowest/rank": 1.0,
    "rank_seconds/slowest/cost": 0.25,
    "scales/s_qk/mean/layer_00": 1.0,
    "scales/s_qk/mean/layer_01": 1.5,
    "scales/s_qk/max/layer_00": 2.0,
    "scales/s_qk/max/layer_01": 2.5,
    "scales/s_z/mean": 3.0,
    "stretch": 0.25,
}


def log_a_run(folder: Path, *settings: str) -> None:
    """Steps 1 to 6, then a restart from step 4, with vitals at step 8."""
    config = configured(folder, *settings)
    check_outputs(config)
    log_steps(config, range(1, 7), valid_loss=9.0)
    with RunLog(config, 4, enabled=True) as log:
        for step in range(5, 9):
            if step == 8:
                log.vitals(step, VITALS)
            log.step(record(step))


def test_tensorboard_shows_the_steps_that_count(tmp_path):
    """Steps of an attempt that died after the resumed one are not shown twice."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log_a_run(tmp_path, "--logging.tensorboard", "true")
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    loss = found.Scalars("loss")
    assert [event.step for event in loss] == list(range(1, 9))
    assert [event.value for event in loss] == pytest.approx([1 / n for n in range(1, 9)], rel=1e-6)
    assert [event.step for event in found.Scalars("valid_loss")] == [1, 2, 3, 4]
    for name, value in FLAT.items():
        assert [(event.step, event.value) for event in found.Scalars(name)] == [(8, value)]
    named = [tag for tag in found.Tags()["scalars"] if tag.startswith("rank_seconds")]
    assert sorted(named) == ["rank_seconds/slowest/cost", "rank_seconds/slowest/rank"]


def wandb_histories(path: Path) -> Iterator[dict[str, float]]:
    """What an offline run logged, from its file: records as in LevelDB's log, protobufs inside."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = (1 << 15) - at % (1 << 15)  # no header crosses the end of a block
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            entry = proto.Record()
            entry.ParseFromString(record)
            record = b""
            if entry.HasField("history"):
                items = entry.history.item
                yield {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}


@pytest.mark.slow  # each start of W&B's own process takes seconds
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    log_a_run(tmp_path, "--logging.wandb_project", "spheres")
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    first, second = (list(wandb_histories(path)) for path in files)
    assert [h["_step"] for h in first] == [1, 2, 3, 4, 5, 6]
    assert [(h["_step"], h["loss"]) for h in second] == [(n, 1 / n) for n in range(5, 9)]
    assert {name: second[-1][name] for name in FLAT} == FLAT


def test_mlflow_in_files(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # as the sink does, but undone afterwards
    log_a_run(tmp_path, "--logging.mlflow_experiment", "spheres")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("spheres").experiment_id
    second, first = client.search_runs([experiment], order_by=["start_time DESC"])
    assert (first.info.status, second.info.status) == ("FINISHED", "FINISHED")
    assert second.data.params["train.steps"] == "20"
    assert second.data.tags["resumed_at"] == "4"
    loss = client.get_metric_history(second.info.run_id, "loss")
    assert [(m.step, m.value) for m in loss] == [(n, 1 / n) for n in range(5, 9)]
    assert {name: second.data.metrics[name] for name in FLAT} == FLAT


def test_prometheus_textfile(tmp_path):
    parser = pytest.importorskip("prometheus_client.parser")
    path = tmp_path / "textfile" / "ngpt.prom"
    log_a_run(tmp_path / "sphere", "--logging.prometheus", str(path))
    families = list(parser.text_string_to_metric_families(path.read_text()))
    found = {(s.name, s.labels.get("layer")): s for f in families for s in f.samples}
    assert {s.labels["run"] for s in found.values()} == {"sphere"}
    assert found["ngpt_step", None].value == 8
    assert found["ngpt_loss", None].value == 1 / 8
    assert found["ngpt_scales_s_qk_max", "1"].value == 2.5
    assert found["ngpt_updated_seconds", None].value > 1.7e9
    assert [p.name for p in path.parent.iterdir()] == ["ngpt.prom"]


def test_a_program_that_fails_does_not_end_the_run(tmp_path, capfd):
    pytest.importorskip("prometheus_client")
    path = tmp_path / "here" / "ngpt.prom"
    config = configured(tmp_path / "run", "--logging.prometheus", str(path))
    with RunLog(config, 0, enabled=True) as log:
        path.mkdir()  # it cannot be replaced by a file
        for step in (1, 2):
            log.step(record(step))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    told = capfd.readouterr().err
    assert told.count("prometheus: IsADirectoryError") == 1
    assert "prometheus: 3 records were not taken" in told


@pytest.mark.parametrize(
    ("option", "value", "module"),
    [
        ("wandb_project", "spheres", "wandb"),
        ("mlflow_experiment", "spheres", "mlflow"),
        ("prometheus", "ngpt.prom", "prometheus_client"),
        ("tensorboard", "true", "torch.utils.tensorboard"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, option, value, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as error:
        check_outputs(configured(tmp_path, f"--logging.{option}", value))
    assert f"{module} is needed for logging.{option} = {value}" in str(error.value)
    assert "pip install 'megatron-ngpt[logging]'" in str(error.value)
