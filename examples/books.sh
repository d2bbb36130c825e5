#!/usr/bin/env bash
# Length extension and evaluation by length, end to end on a CPU, out of one's own long documents:
#   bash examples/books.sh TRAIN.jsonl VALID.jsonl TOKENIZER.model [FOLDER]
#
# Trains a small nGPT with 512 tokens, evaluates it up to 2048 with each rotary embedding, goes on at 2048
# with YaRN on two ranks that share every sequence, evaluates again, and asks it multiple-choice questions
# through lm-eval-harness where that is installed. Half an hour on two cores. The tokenizer has 16000
# pieces, or --model.vocab_size in books_cpu.yaml is another. What a call has made, the next keeps.
set -euo pipefail
train=$(realpath "${1:?text to train on}") valid=$(realpath "${2:?long documents to evaluate on}")
tokenizer=$(realpath "${3:?a SentencePiece model}")
cd "$(dirname "$0")/.."
. tools/venv.sh
enter_environment preprocess,plot,hf
out=${4:-runs/books}
mkdir -p "$out"
export OMP_NUM_THREADS=1
say() { printf '\n== %s\n' "$*"; }

say "1. Encode the text"
for part in train valid; do
  python tools/preprocess_data.py --append-eod --tokenizer-model "$tokenizer" --input "${!part}" --output-prefix "$out/$part"
done

pretrain() {
  torchrun --standalone --nproc-per-node "$1" pretrain_ngpt.py --config examples/configs/books_cpu.yaml \
    --data.train "$out/train_text_document" --data.valid "$out/valid_text_document" \
    --data.tokenizer "$tokenizer" "${@:2}"
}
say "2. Pretrain with 512 tokens"
pretrain 2 --logging.dir "$out/short"

evaluate() { # RUN NAME settings
  torchrun --standalone --nproc-per-node 2 tools/evaluate.py --checkpoint "$out/$1" --data "$out/valid_text_document" \
    --lengths 512,1k,2k --passkey --depths 3 --output "$out/$2.json" --plot "$out/$2.png" --train.loss_chunk 512 "${@:3}"
}
longer=(--model.rope_factor 4 --model.rope_original 512)
say "3. Evaluate up to four times the length, as it is and with its rotary embedding stretched"
evaluate short none
for scaling in linear ntk yarn; do evaluate short "$scaling" --model.rope_scaling "$scaling" "${longer[@]}"; done

say "4. Go on with 2048 tokens, YaRN, and two ranks that share every sequence"
if [ ! -d "$out/long" ]; then
  mkdir "$out/long"
  cp -r "$out/short/checkpoints" "$out/long/"
fi
pretrain 2 --logging.dir "$out/long" --data.seq_len 2048 --train.global_batch 2 --train.micro_batch 1 --train.steps 1200 \
  --parallel.cp 2 --model.rope_scaling yarn "${longer[@]}"
evaluate long long

say "5. Multiple choice through lm-eval-harness"
for run in short long; do
  [ -d "$out/hf_$run" ] || python tools/export_hf.py --checkpoint "$out/$run" --output "$out/hf_$run"
done
python tools/make_questions.py --input "$valid" --output "$out/continuations.jsonl" --count 400
if ! command -v lm_eval > /dev/null; then
  echo "lm_eval is not installed: pip install -c constraints.txt -e '.[eval]'"
  exit
fi
tasks=$PWD/examples/lm_eval
for run in short long; do
  (cd "$out" && lm_eval run --model hf --model_args "pretrained=hf_$run,trust_remote_code=True" --device cpu \
    --include_path "$tasks" --tasks continuations --batch_size 8)
done
