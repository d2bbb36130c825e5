#!/usr/bin/env bash
# The checklist of a release, as far as a machine can run it:
#
#   bash tools/release.sh                      all of it, with every Python that has an environment with torch
#   bash tools/release.sh 3.11 3.12            with these Pythons
#   bash tools/release.sh --download 3.13      torch may be downloaded where no environment has it (5.5 GB)
#
# 1  the version is the same in pyproject.toml, CITATION.cff and CHANGELOG.md, and the tag is free
# 2  sdist and wheel are built by PyPA's build, the wheel from the sdist, into dist/; both hold what they should
# 3  the wheel is installed into a fresh environment of each Python and trains there, outside of the checkout
# 4  the links of all pages lead somewhere (a site, where there is mkdocs.yml, is built strictly)
# 5  the tag is named. Nothing is tagged, pushed or uploaded: that is for a person.
#
# Torch is not installed again for each Python: the fresh environment sees the packages of one that has them, but not its
# project: .venv-versions/PYTHON-TORCH (bash tests/versions.sh --install 3.12:2.14.1), .venv, or the active one.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
unset PYTHONPATH  # what is tried must be the wheel
download=0
[ "${1:-}" != --download ] || { download=1; shift; }
pythons=("$@")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# ---------------------------------------------------------------- 1 versions
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' megatron_ngpt/__init__.py)
echo "1  release $version"
if [ -n "$(git status --porcelain)" ]; then
  echo "   the checkout has changes that are not committed: what is built here is not what a tag would name" >&2
  [ "${ALLOW_DIRTY:-0}" = 1 ] || { echo "   commit them, or set ALLOW_DIRTY=1 to try the rest" >&2; exit 1; }
fi
grep -q "^version: $version$" CITATION.cff || { echo "   CITATION.cff has another version" >&2; exit 1; }
grep -q "^## $version, 20" CHANGELOG.md || { echo "   CHANGELOG.md has no section \"## $version, DATE\"" >&2; exit 1; }
if git rev-parse -q --verify "refs/tags/v$version" >/dev/null; then
  echo "   the tag v$version is taken: raise the version" >&2
  exit 1
fi

# ---------------------------------------------------------------- 2 build
python3 -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --constraint constraints.txt build
rm -rf dist
"$work/build/bin/python" -m build --outdir dist >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
! grep -i "deprecat" "$work/build.log" || { echo "   the build warns of what is deprecated" >&2; exit 1; }
wheel=$(ls "$root"/dist/megatron_ngpt-"$version"-*.whl)
"$work/build/bin/python" - "$wheel" <<'CHECK'
import pathlib
import sys
import zipfile

wheel = zipfile.ZipFile(sys.argv[1])
held = set(wheel.namelist())
wanted = {p.as_posix() for end in ("*.py", "*.cpp", "*.h", "py.typed") for p in pathlib.Path("megatron_ngpt").rglob(end)}
missing = sorted(wanted - held)
assert not missing, f"the wheel lacks {missing[:5]}"
assert any(name.endswith("licenses/LICENSE") for name in held), "the wheel has no LICENSE"
metadata = next(wheel.read(name).decode() for name in held if name.endswith(".dist-info/METADATA"))
assert "License-Expression: Apache-2.0" in metadata
print(f"2  {sys.argv[1].rpartition('/')[2]}: {len(held)} files; {sum(i.file_size for i in wheel.infolist()) >> 10} KiB")
CHECK

# ---------------------------------------------------------------- 3 the wheel
python_of() {
  local found
  for found in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1."*/bin/python; do
    if "$found" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      command -v "$found"
      return
    fi
  done
  return 1
}

packages_of() { # where an environment of this Python keeps torch, if there is one
  local venv
  for venv in "$root/.venv-versions/$1"-* "$root/.venv" "${VIRTUAL_ENV:-/nowhere}"; do
    [ -x "$venv/bin/python" ] || continue
    "$venv/bin/python" -c "
import importlib.util, sys, sysconfig
sys.exit(1) if '%d.%d' % sys.version_info[:2] != '$1' or not importlib.util.find_spec('torch') else None
print(sysconfig.get_path('purelib'))" 2>/dev/null && return
  done
  return 1
}

try_wheel() { # PYTHON
  local python packages fresh="$work/fresh-$1"
  python=$(python_of "$1") || { echo "3  Python $1: not here"; return 2; }
  packages=$(packages_of "$1") || packages=
  if [ -z "$packages" ] && [ "$download" = 0 ]; then
    echo "3  Python $1: no environment with torch; tests/versions.sh --install makes one, --download allows it here"
    return 2
  fi
  "$python" -m venv "$fresh"
  if [ -n "$packages" ]; then
    "$fresh/bin/python" -m pip install --quiet --no-deps "$wheel"
    # behind the environment's own packages, and without the .pth files there: an editable install is not seen
    echo "$packages" >"$("$fresh/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"
  else
    "$fresh/bin/python" -m pip install --quiet --constraint constraints.txt "$wheel"
  fi
  mkdir -p "$work/outside-$1"
  (cd "$work/outside-$1" && env OMP_NUM_THREADS=1 "$fresh/bin/python" "$root/tools/release/try_wheel.py" "$version") || return 1
}

if [ ${#pythons[@]} = 0 ]; then pythons=(3.10 3.11 3.12 3.13); fi
tried=0
for python in "${pythons[@]}"; do
  code=0
  try_wheel "$python" || code=$?
  [ "$code" != 1 ] || { echo "   the wheel does not work with Python $python" >&2; exit 1; }
  [ "$code" != 0 ] || tried=$((tried + 1))
done
[ "$tried" -gt 0 ] || { echo "   the wheel was tried with no Python at all" >&2; exit 1; }

# ---------------------------------------------------------------- 4 docs
python3 tools/release/check_links.py
if [ -e mkdocs.yml ]; then python3 -m mkdocs build --strict --quiet --site-dir "$work/site"; fi

# ---------------------------------------------------------------- 5 the tag
cat <<NEXT
5  what is left for a person, from a checkout whose CI has passed at $(git rev-parse --short HEAD):
     git tag -a v$version -m "megatron-ngpt $version" && git push origin v$version
     python -m twine upload dist/*
   Then: a section "## Unreleased" on top of CHANGELOG.md, and the next version in megatron_ngpt/__init__.py and CITATION.cff.
NEXT
