#!/usr/bin/env bash
# From raw text to a trained, resumed, generating nGPT: bash examples/quickstart.sh [FOLDER]
#
# Needs Python 3.10 or newer and PyPI, no GPU and no data: the corpus is the Python standard library's
# own source code. Takes about four minutes on two CPU cores once everything is installed. Files go to
# FOLDER (runs/quickstart). ACTIVE_ENV=1 uses the active environment instead of making .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/venv.sh
enter_environment preprocess

out=${1:-runs/quickstart}
rm -rf "$out"
mkdir -p "$out"
stdlib=$(python -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
ranks=2
if [ "$gpus" = 1 ]; then ranks=1; fi
export OMP_NUM_THREADS=1
say() { printf '\n== %s\n' "$*"; }

say "1. Train a tokenizer on the standard library's modules"
python tools/train_tokenizer.py --format text --on-error skip --vocab-size 2048 \
  --input "$stdlib/*.py" --output "$out/tokenizer.model"

say "2. Encode the text into Megatron's .bin/.idx pairs: top-level modules to train on, packages to validate"
encode() {
  python tools/preprocess_data.py --format text --on-error skip --append-eod \
    --tokenizer-model "$out/tokenizer.model" --output-prefix "$out/$1" --input "${@:2}"
}
encode train "$stdlib/*.py" "$stdlib/asyncio/*.py" "$stdlib/multiprocessing/*.py"
encode valid "$stdlib/email/*.py" "$stdlib/http/*.py" "$stdlib/logging/*.py"

pretrain() {
  torchrun --standalone --nproc-per-node "$ranks" pretrain_ngpt.py \
    --config examples/configs/quickstart.yaml --logging.dir "$out" \
    --data.train "$out/train_text_document" --data.valid "$out/valid_text_document" \
    --data.tokenizer "$out/tokenizer.model" "$@"
}
say "3. Pretrain on $ranks ranks with ZeRO-1, and stop halfway"
pretrain --train.stop_at 150

say "4. The same command again resumes from the sharded checkpoint"
pretrain

say "5. Generate"
python tools/generate.py --checkpoint "$out" --length 80 --temperature 0.5 --prompt \
  "def read(self" "import os" "class Queue:"

say "Done. What was made:"
python - "$out" <<'PY'
import json, pathlib, sys

out = pathlib.Path(sys.argv[1])
losses = [r["valid_loss"] for r in map(json.loads, open(out / "metrics.jsonl")) if "valid_loss" in r]
print(f"validation loss {losses[0]:.2f} -> {losses[-1]:.2f} nats per token")
for name, what in {
    "tokenizer.model": "SentencePiece tokenizer",
    "train_text_document.bin": "training tokens (index: .idx)",
    "valid_text_document.bin": "validation tokens",
    "metrics.jsonl": "one line per step",
    "config.yaml": "every setting of the run",
    "checkpoints": "sharded checkpoints; any number of ranks resumes them",
}.items():
    print(f"  {out / name}: {what}")
assert losses[-1] < losses[0] - 0.5, "the validation loss did not fall"
PY
