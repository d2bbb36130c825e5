# Source this, then call: environment PACKAGE==VERSION ...
#
# Sets $python to a fresh virtual environment with these packages, in a temporary folder that goes at
# the end. FINDINGS_KEEP=FOLDER keeps environments there, by their packages, for the next script with
# the same ones. PYTHON names another interpreter than python3. Then: same EXPECTED SEEN

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

environment() {
  local folder="$work/environment"
  if [ -n "${FINDINGS_KEEP:-}" ]; then
    mkdir -p "$FINDINGS_KEEP"
    folder="$(cd "$FINDINGS_KEEP" && pwd)/$(printf %s "$*" | tr -c 'A-Za-z0-9.\n' _)"
  fi
  if [ ! -e "$folder/done" ]; then
    "${PYTHON:-python3}" -m venv "$folder" &&
      "$folder/bin/python" -m pip install --quiet "$@" >&2 &&
      touch "$folder/done" || return 1
  fi
  python="$folder/bin/python"
}

same() { # both are shown; the script fails where they differ
  printf 'seen:\n%s\n' "$2"
  [ "$1" = "$2" ] || { printf 'THIS HAS CHANGED, it was:\n%s\n' "$1" >&2; exit 1; }
}
