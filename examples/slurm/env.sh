# Site settings: the only file that a site edits. Every script here reads it on the login node and again in the job,
# from the repository's root; NGPT_SITE names another file in its place.

# What sbatch and salloc shall know; options on their command line win over these.
# export SBATCH_PARTITION=gpu SALLOC_PARTITION=gpu
# export SBATCH_ACCOUNT=myproject SALLOC_ACCOUNT=myproject

# What salloc is asked for by debug.sh.
debug_options=(--ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8)

# The environment in which the ranks run.
# module load cuda/12.8
if [ -f .venv/bin/activate ]; then . .venv/bin/activate; fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

# A container, if any. Apptainer starts inside the rank, Pyxis is an option of srun.
container=()
# container=(apptainer exec --nv --bind "$PWD" /path/to/image.sif)
srun_options=()
# srun_options=(--container-image=/path/to/image.sqsh --container-mounts="$PWD:$PWD" --container-workdir="$PWD")

# The network that NCCL shall use between nodes (see `ip link`), where it does not find it by itself.
# export NCCL_SOCKET_IFNAME=ib0 NCCL_IB_HCA=mlx5

# How MPI programs start: through srun (see `srun --mpi=list`), or by the mpirun of the environment.
mpi=(srun --mpi=pmix --kill-on-bad-exit=1 "${srun_options[@]}")
# mpi=(mpirun)

# Attempts in a row without a new checkpoint (preprocessing: a finished shard) after which a job requeues no more.
tries=3

# Seconds that srun may outlive its ranks.
srun_patience=120
