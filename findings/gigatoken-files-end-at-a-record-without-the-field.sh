#!/usr/bin/env bash
# gigatoken 0.10.0: encode_files(JsonlFileSource(...)) ends at the first record that lacks the field.
#
# Valid JSON Lines, five records, the second without "text": one document comes back, the three whole
# ones behind it are left out, and nothing is raised or printed. With one thread and with all.
# A tool that encodes whole files this way (Megatron-LM's tools/preprocess_data_fast.py of August 2026
# calls it) makes a shorter corpus without a word. Seen on 2026-11-28, Python 3.11, x86-64 Linux.
set -euo pipefail
. "$(dirname "$0")/environment.sh"
environment gigatoken==0.10.0 tokenizers==0.23.3
seen=$("$python" - "$work" <<'PYTHON'
import json, sys
import gigatoken, tokenizers
from tokenizers import models, pre_tokenizers

folder = sys.argv[1]
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
encoder = gigatoken.Tokenizer.from_json(tokenizer.to_str())

def documents(records):
    with open(f"{folder}/records.jsonl", "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    source = gigatoken.JsonlFileSource([f"{folder}/records.jsonl"])
    return [len(encoder.encode_files(source, parallel=parallel)) for parallel in (False, True)]

whole = [{"text": word} for word in ("one", "two", "three", "four", "five")]
print("five records:", documents(whole))
print("the second without text:", documents([whole[0], {"title": "two"}, *whole[2:]]))
PYTHON
)
same "five records: [5, 5]
the second without text: [1, 1]" "$seen"
