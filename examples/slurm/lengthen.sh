#!/bin/bash
# A curriculum of context lengths (docs/long_context.md): one requeueing job a stage, each going on from
# the newest checkpoint of the one before, once that is done.
#   examples/slurm/lengthen.sh [--sbatch-option=VALUE ...] RUN_DIR FILE[:NODES] ... [--section.field VALUE ...]
#   examples/slurm/lengthen.sh RUN_DIR --data.train PREFIX          # 8k -> 32k -> 128k on 8 nodes each
#   examples/slurm/lengthen.sh RUN_DIR ... --dry_run                # memory of each stage; submits nothing
# Stages share RUN_DIR/checkpoints; RUN_DIR/NAME_OF_FILE has each one's metrics. The train.steps of a
# file count all stages so far. The same line again goes on where the stages stopped.
set -euo pipefail
. "${NGPT_SITE:-examples/slurm/env.sh}"
options=() stages=() dry=''
while [[ ${1:-} == --* ]]; do options+=("$1"); shift; done
run_dir=${1:?the folder of the run}
shift
while [ $# -gt 0 ] && [[ $1 != --* ]]; do stages+=("$1"); shift; done
if [ ${#stages[@]} = 0 ]; then stages=(examples/configs/ngpt_1b_{8k,32k,128k}.yaml); fi
case " $* " in *" --dry_run "*) dry=1 ;; esac

before=''
for stage in "${stages[@]}"; do
  file=${stage%:*} nodes=8
  if [ "$file" != "$stage" ]; then nodes=${stage##*:}; fi
  name=$(basename "$file" .yaml)
  words=("$run_dir/$name" --config "$file" "$@" --checkpoint.dir "$run_dir/checkpoints")
  if [ "$dry" ]; then
    echo "== $name on $nodes nodes"
    python pretrain_ngpt.py "${words[@]:1}" --world_size $((nodes * 8)) --logging.dir "$run_dir/$name"
    continue
  fi
  # afterok: a stage that gave up, or was cancelled, takes those after it along
  after=${before:+--dependency=afterok:$before}
  job=$(sbatch --parsable --nodes="$nodes" --job-name="$name" --kill-on-invalid-dep=yes $after \
    ${options[@]+"${options[@]}"} examples/slurm/pretrain.sbatch "${words[@]}")
  before=${job%%;*}
  echo "$before  $name on $nodes nodes${after:+, $after}"
done
