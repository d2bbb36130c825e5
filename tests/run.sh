#!/usr/bin/env bash
# Run the tests in an environment of their own: bash tests/run.sh [--slow | --all] [pytest options]
#
#   (none)   the fast tests, a few minutes
#   --slow   only the tests marked slow
#   --all    both
#
# ACTIVE_ENV=1 uses the active environment instead of .venv. Fast tests run in two processes that share
# the files out; WORKERS says how many, 0 means none but pytest's own, which --pdb and -s need.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh
enter_environment dev

marks="not slow and not gpu"
workers=${WORKERS:-2}
case "${1:-}" in
  # most of these start several ranks, and some watch how long things take
  --slow) marks="slow and not gpu"; workers=${WORKERS:-0}; shift ;;
  --all) marks="not gpu"; workers=${WORKERS:-0}; shift ;;
esac
# one thread per process: tests start several, and sums must not depend on the machine
export OMP_NUM_THREADS=1
exec python -m pytest -m "$marks" --numprocesses "$workers" "$@"
