#!/usr/bin/env bash
# Everything measured on one GPU, in under 8 minutes, installing nothing:
#
#     bash benchmarks/gpu_suite.sh OUTDIR [--dry-run]
#
# Runs the tests marked gpu and the benchmarks with the active python3, and writes
# OUTDIR/gpu_suite.json and OUTDIR/gpu_suite.md. --dry-run does the same at toy size on CPU.
set -euo pipefail
if [ $# -lt 1 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: bash benchmarks/gpu_suite.sh OUTDIR [--dry-run]" >&2
    exit 2
fi
mkdir -p "$1"
outdir=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
exec python3 -m benchmarks.gpu_suite "$outdir" "$@"
