# What the batch scripts share. Sourced by them, in the job.

# Wait for a process to its end although traps end `wait` early; its exit code.
wait_for_end() {
  local code
  wait "$1"
  code=$?
  while kill -0 "$1" 2>/dev/null; do
    wait "$1"
    code=$?
  done
  return "$code"
}

# `scancel`, too, sends SIGTERM first; SLURM would bring a job that somebody cancelled back to life.
requeue_unless_cancelled() {
  if scontrol -o show job "$SLURM_JOB_ID" | grep -Eq 'JobState=RUNNING|Reason=TimeLimit'; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

# srun (a process) waits for ever for ranks whose slurmstepd was killed. End it when the ranks of a run
# (a folder) told of their end two minutes ago, in a file newer than its start (seconds since 1970).
end_forgotten() {
  local told
  while sleep 5 && kill -0 "$1" 2>/dev/null; do
    told=$(find "$2/trouble" -type f -newermt "@$3" -printf '%T@\n' 2>/dev/null | sort -n | head -n 1)
    if [ -z "$told" ] && tail -n 1 "$2/attempts.jsonl" 2>/dev/null | grep -q '"reason"'; then
      told=$(find "$2/attempts.jsonl" -newermt "@$3" -printf '%T@\n')
    fi
    if [ -n "$told" ] && [ "$(($(date +%s) - ${told%%.*}))" -gt "${srun_patience:-120}" ]; then kill -KILL "$1"; fi
  done
}
