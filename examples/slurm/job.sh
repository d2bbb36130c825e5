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
