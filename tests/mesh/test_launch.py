import pytest
import torch

from megatron_ngpt.mesh import launch, mpi
from megatron_ngpt.mesh.launch import (
    Job,
    Launch,
    pick_device,
    read_job,
    read_launch,
    without_local_rank,
)

MEETING = {"MASTER_ADDR": "node7", "MASTER_PORT": "29501"}
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}
SRUN_PMI2 = {"PMI_RANK": "5", "PMI_SIZE": "8", **SRUN}
LAUNCHERS = {
    "torchrun": TORCHRUN,
    "mpirun": OPEN_MPI,
    "mpich": MPICH,
    "srun": SRUN,
    "srun --mpi=pmi2": SRUN_PMI2,
    # torchrun started by srun on every node, and mpirun inside an allocation: the inner one counts
    "torchrun under srun": {**TORCHRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
    "mpirun under srun": {**OPEN_MPI, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_identity_from(launcher):
    assert read_launch({**LAUNCHERS[launcher], **MEETING}) == Launch(5, 8, 1, "node7", 29501)


def test_plain_python_is_alone():
    assert read_launch({}) == Launch(rank=0, world_size=1, local_rank=0)


def test_a_batch_script_without_srun_is_alone():
    """sbatch sets the job's number of tasks, but only srun starts that many processes."""
    assert read_launch({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}) == Launch()


def test_a_single_process_needs_no_meeting_point():
    assert read_launch({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == Launch()


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
@pytest.mark.parametrize("half", [{}, {"MASTER_ADDR": "node7"}, {"MASTER_PORT": "1"}])
def test_no_meeting_point_is_refused(launcher, half):
    with pytest.raises(ValueError, match=rf"(?s){launcher}.*8 processes.*export"):
        read_launch({**LAUNCHERS[launcher], **half})


@pytest.mark.parametrize("launcher", ["mpirun", "mpich"])
def test_mpi_agrees_on_the_meeting_point(launcher, monkeypatch):
    monkeypatch.setattr(launch, "agree_on_address", lambda rank: (f"of{rank}", 4000))
    assert read_launch(LAUNCHERS[launcher]) == Launch(5, 8, 1, "of5", 4000)


def test_missing_mpi4py_is_told_with_both_ways_out(monkeypatch):
    def refuse(module, extra, job):
        raise ModuleNotFoundError(f"{module} for {job} from {extra}")

    monkeypatch.setattr(mpi, "require", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"mpi4py.* set MASTER_ADDR .* mpi"):
        read_launch(OPEN_MPI)


def test_job():
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert read_job({}) == Job()
    assert read_job(slurm) == Job("17", 0, "n[1-2]", series={"slurm  17": 0})
    again = {**slurm, "SLURM_RESTART_COUNT": "2", "SLURM_JOB_END_TIME": "1700000000"}
    assert read_job(again) == Job("17", 2, "n[1-2]", 1700000000.0, {"slurm  17": 2})
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}
    assert read_job(torchrun).series == {"torchrun x": 1}
    assert read_job({**torchrun, "TORCHELASTIC_RUN_ID": "none"}).series == {}, "everybody's default"


def test_without_local_rank():
    words = ["--local_rank=1", "--config", "F.yaml", "--local-rank=0", "--train.steps", "3"]
    assert without_local_rank(words) == ["--config", "F.yaml", "--train.steps", "3"]


@pytest.mark.parametrize(
    ("wanted", "gpus", "local_rank", "device"),
    [
        ("cpu", 4, 0, "cpu"),
        ("auto", 0, 3, "cpu"),
        ("auto", 4, 3, "cuda:3"),
        ("cuda", 2, 1, "cuda:1"),
    ],
)
def test_device_of(monkeypatch, wanted, gpus, local_rank, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert pick_device(wanted, local_rank) == torch.device(device)


@pytest.mark.parametrize(("wanted", "gpus", "local_rank"), [("cuda", 0, 0), ("auto", 2, 2)])
def test_more_processes_than_gpus_are_refused(monkeypatch, wanted, gpus, local_rank):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=rf"engine.device = {wanted}: local rank {local_rank} has"):
        pick_device(wanted, local_rank)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK = one"),
        ({"RANK": "0", "WORLD_SIZE": "2x"}, "WORLD_SIZE = 2x"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK = -1"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "http"},
            "MASTER_PORT = http",
        ),
    ],
)
def test_variables_that_are_no_numbers_are_named(variables, named):
    with pytest.raises(ValueError, match=rf"^{named} in the environment: must be a whole number"):
        read_launch(variables)
