#!/usr/bin/env bash
# gigatoken 0.10.0 beside tokenizers 0.23.3: "single_word" of an added token is not looked at.
#
# A tokenizer.json may say of an added token that it counts only as a word of its own. tokenizers then
# spells "a<mark>b" in letters; gigatoken takes the mark. No error when the file is read, so that the
# same file gives two corpora. Seen on 2026-11-28, Python 3.11, x86-64 Linux.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment gigatoken==0.10.0 tokenizers==0.23.3
seen=$("$python" - <<'PYTHON'
import gigatoken, tokenizers
from tokenizers import AddedToken, models, pre_tokenizers

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.add_tokens([AddedToken("<mark>", single_word=True, normalized=False)])
encoder = gigatoken.Tokenizer.from_json(tokenizer.to_str())
for text in ("a <mark> b", "a<mark>b"):
    theirs = tokenizer.encode(text, add_special_tokens=False).ids
    fast = encoder.encode_batch([text.encode()], parallel=False).to_list()[0]
    print(f"{text}: {len(theirs)} ids from tokenizers, {len(fast)} from gigatoken")
PYTHON
)
same "a <mark> b: 5 ids from tokenizers, 5 from gigatoken
a<mark>b: 8 ids from tokenizers, 3 from gigatoken" "$seen"
