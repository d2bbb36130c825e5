#!/usr/bin/env bash
# gigatoken 0.10.0 beside sentencepiece 0.2.3: the letters "</s>" in a text become the end mark.
#
# SentencePiece never makes a control piece out of text; it spells the letters. gigatoken's
# from_sentencepiece, which reads the same .model, gives the control piece's id, so that a page about
# HTML or tokenizers holds ends of documents. Seen on 2026-11-28, Python 3.11, x86-64 Linux.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment gigatoken==0.10.0 sentencepiece==0.2.3
seen=$("$python" - "$work" <<'PYTHON'
import io, sys
import gigatoken, sentencepiece

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a page on marks and pages"] * 50), model_writer=model,
    model_type="bpe", vocab_size=290, byte_fallback=True, minloglevel=2,
)
theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
fast = gigatoken.Tokenizer.from_sentencepiece(model.getvalue())
text, end = "on </s> marks", theirs.eos_id()
print("sentencepiece has the end mark's id:", end in theirs.encode(text))
print("gigatoken has it:", end in fast.encode_batch([text.encode()], parallel=False).to_list()[0])
PYTHON
)
same "sentencepiece has the end mark's id: False
gigatoken has it: True" "$seen"
