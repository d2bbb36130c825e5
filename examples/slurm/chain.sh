#!/bin/bash
# N jobs, one after the other, for queues that allow no requeue or no long jobs. The first that
# finds the run done cancels the rest.
#   examples/slurm/chain.sh N [sbatch options] examples/slurm/pretrain.sbatch RUN_DIR --config F.yaml ...
set -euo pipefail
. "${NGPT_SITE:-examples/slurm/env.sh}"
count=${1:?the number of jobs}
shift
name=chain-$(date +%s)-$$
for _ in $(seq "$count"); do
  REQUEUE=no CHAIN=1 sbatch --parsable --job-name="$name" --dependency=singleton "$@"
done
