#!/bin/bash
# The same run in the foreground of this terminal, on one node for half an hour; it does not requeue.
#   examples/slurm/debug.sh RUN_DIR --config F.yaml [--section.field VALUE ...]
set -euo pipefail
. "${NGPT_SITE:-examples/slurm/env.sh}"
REQUEUE=no exec salloc --nodes=1 --time=30 "${debug_options[@]}" bash examples/slurm/pretrain.sbatch "$@"
