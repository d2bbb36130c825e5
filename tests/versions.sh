#!/usr/bin/env bash
# The fast tests on several versions of Python and torch, each pair in an environment of its own:
#
#   bash tests/versions.sh                                  the pairs below, about 30 minutes each on 2 cores
#   bash tests/versions.sh 3.12:2.14.1 3.10:2.11.0          these pairs
#   bash tests/versions.sh 3.12:2.14.1 -- tests/ops -x      with options for pytest
#   bash tests/versions.sh --install 3.13:2.13.0            make the environment, run nothing
#
# Environments are kept in .venv-versions/PYTHON-TORCH; delete that folder when done. PyPI's torch for
# Linux brings CUDA, 5.5 GB an environment; with pip pointed at PyTorch's CPU wheels (PIP_EXTRA_INDEX_URL
# or PIP_FIND_LINKS, see pytorch.org) it is 1.5 GB. Interpreters are looked for in PATH and in pyenv's folder.
# Everything but torch has the versions of constraints.txt, which names others where a Python needs them.
# docs/versions.md says what passed.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh

# every Python and every torch once
pairs=(3.10:2.11.0 3.11:2.13.0 3.12:2.14.1 3.13:2.13.0)

python_of() {
  local found
  for found in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1."*/bin/python; do
    # pyenv has a command of that name for versions that are not switched on, which only complains
    if "$found" -c 'import sys' 2>/dev/null; then
      echo "$found"
      return
    fi
  done
  echo "there is no Python $1, neither as python$1 nor in pyenv's folder: install it, or leave the pair out" >&2
  return 1
}

run_pair() { # PYTHON TORCH [pytest options], in a subshell where errors do not end the script by themselves
  local name="$1-$2"
  export VENV="$PWD/.venv-versions/$name" CONSTRAINTS="$PWD/.venv-versions/$name.constraints"
  mkdir -p .venv-versions
  sed "s/^torch==.*/torch==$2/" constraints.txt >"$CONSTRAINTS.new"
  # an unchanged file keeps its time, which says whether the environment is up to date
  cmp -s "$CONSTRAINTS.new" "$CONSTRAINTS" || mv "$CONSTRAINTS.new" "$CONSTRAINTS"
  rm -f "$CONSTRAINTS.new"
  PYTHON=$(python_of "$1") || return 1
  export PYTHON
  ACTIVE_ENV=0 enter_environment dev || return 1
  shift 2
  if [ "$install_only" = 0 ]; then ACTIVE_ENV=1 bash tests/run.sh "$@"; fi
}

install_only=0
[ "${1:-}" != --install ] || { install_only=1; shift; }
asked=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  [[ $1 =~ ^3\.[0-9]+:[0-9]+\.[0-9.]+$ ]] || { echo "$1 is not PYTHON:TORCH, as in 3.12:2.14.1" >&2; exit 2; }
  asked+=("$1")
  shift
done
[ "${1:-}" != -- ] || shift
[ ${#asked[@]} = 0 ] || pairs=("${asked[@]}")

failed=0
report=""
for pair in "${pairs[@]}"; do
  log=".venv-versions/${pair/:/-}.log"
  mkdir -p .venv-versions
  verdict=passed
  (run_pair "${pair%:*}" "${pair#*:}" "$@") 2>&1 | tee "$log" || { verdict=FAILED; failed=1; }
  report+="Python ${pair%:*}, torch ${pair#*:}: $verdict, $(grep -E '[0-9]+ (passed|failed|error)' "$log" | tail -n 1 || true)"$'\n'
done
printf '\n%s' "$report"
exit "$failed"
