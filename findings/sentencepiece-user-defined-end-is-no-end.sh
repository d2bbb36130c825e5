#!/usr/bin/env bash
# sentencepiece 0.2.3: with user_defined_symbols=["</s>"] piece 2 is still </s>, and eos_id() is -1.
#
# That option is what one takes for texts that hold their own end marks. The model then has no end of its
# own: encode(..., add_eos=True) raises, and code that appends eos_id() writes -1.
# Seen on 2026-11-28, Python 3.11, x86-64 Linux.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment sentencepiece==0.2.3
seen=$("$python" - 2>/dev/null <<'PYTHON'
import io
import sentencepiece

for symbols in ([], ["</s>"]):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a page on marks and pages"] * 50), model_writer=model, model_type="bpe",
        vocab_size=290, byte_fallback=True, minloglevel=2, user_defined_symbols=symbols,
    )
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    print(symbols, tokenizer.id_to_piece(2), tokenizer.eos_id())
PYTHON
)
same "[] </s> 2
['</s>'] </s> -1" "$seen"
