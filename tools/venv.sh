# Source this, then call: enter_environment EXTRAS
#
# Makes .venv in the repository (once) with this project, the given extras and the tested versions of
# constraints.txt, and activates it. ACTIVE_ENV=1 uses the environment that is active instead;
# PYTHON names another interpreter than python3, VENV another folder than .venv, CONSTRAINTS another
# file than constraints.txt (tests/versions.sh).

enter_environment() {
  local extras=$1 root python stamp venv constraints
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  python=${PYTHON:-python3}
  venv=${VENV:-$root/.venv}
  constraints=${CONSTRAINTS:-$root/constraints.txt}
  if [ "${ACTIVE_ENV:-0}" != 1 ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
      echo "$python is older than Python 3.10: set PYTHON to a newer one" >&2
      return 1
    }
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || return 1
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
  fi
  stamp="$(python -c 'import sys; print(sys.prefix)')/.megatron_ngpt_$(printf %s "$extras" | tr -c 'a-z' _)"
  if [ "$stamp" -nt "$root/pyproject.toml" ] && [ "$stamp" -nt "$constraints" ]; then
    return 0
  fi
  echo "installing into $(python -c 'import sys; print(sys.prefix)') ..."
  # torch first: some packages look at it while they are built
  python -m pip install --quiet --constraint "$constraints" torch numpy &&
    python -m pip install --quiet --constraint "$constraints" --editable "$root[$extras]" &&
    touch "$stamp"
}
