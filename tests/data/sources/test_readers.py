import gzip
import json
import random

import pytest

from megatron_ngpt.data.sources import Document, Piece, Refusal, in_batches, read_piece
from megatron_ngpt.data.sources.jsonl import lines_before

GOOD = b'{"text": "good"}\n'


def records_of(tmp_path, content, keys=("text",), format="jsonl", separator=""):
    path = tmp_path / "input"
    path.write_bytes(content)
    return list(read_piece(Piece(str(path)), format, keys, separator))


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": "\xff"}\n', "invalid UTF-8", "byte 10: invalid start byte"),
        (b'{"text": "a" "b"}\n', "invalid JSON", "column 14: Expecting ',' delimiter"),
        (b"[" * 100_000 + b"\n", "invalid JSON", "recursion"),
        (b'{"text": "a", "n": %s}\n' % (b"9" * 5000), "invalid JSON", "digits"),
        (b"\n", "blank line", ""),
        (b" \t\r\n", "blank line", ""),
        (b'["text"]\n', "no JSON object", '["text"]'),
        (b'{"body": "a"}\n', "missing key", "'text' is not among ['body']"),
        (b'{"text": null}\n', "no string", "key 'text' holds null"),
        (b'{"text": ["a", "b"]}\n', "no string", 'key \'text\' holds ["a", "b"]'),
        (b'{"text": ""}\n', "empty text", "key 'text'"),
        (b'{"text": "ab\\ud83d"}\n', "invalid Unicode", "surrogate pair at character 2"),
        (b'{"text": "half a li', "half-written last line", "invalid JSON"),
        (b'{"text": "caf\xc3', "half-written last line", "invalid UTF-8"),
    ],
)
def test_an_unusable_line_is_named(tmp_path, line, reason, detail):
    before, refusal, *after = records_of(
        tmp_path, GOOD + line + (GOOD if line[-1:] == b"\n" else b"")
    )
    assert isinstance(refusal, Refusal)
    assert (refusal.line, refusal.size, refusal.reason) == (2, len(line), reason)
    assert detail in refusal.detail
    assert str(refusal).startswith(f"{tmp_path / 'input'}:2: {reason}")
    assert "--on-error skip" in str(refusal.error())
    assert all(isinstance(record, Document) for record in (before, *after))


def test_a_plain_text_file_read_as_json_is_told_the_other_format(tmp_path):
    (refusal,) = records_of(tmp_path, b"plain text\n")
    assert "--format text" in str(refusal.error())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "a"}', "a"),
        (b'{"text": "a"}\r\n', "a"),
        (b'{"text": "a\\u0000\\ud83d\\ude00"}\n', "a\0\U0001f600"),
        ('{"text": "a\u2028b\x85c"}\n'.encode(), "a\u2028b\x85c"),
        (b'{"text": "first", "text": "a"}\n', "a"),
        (b'{"text": " ", "n": NaN}\n', " "),
    ],
)
def test_a_usable_line(tmp_path, line, text):
    (document,) = records_of(tmp_path, line)
    assert document[1:] == (1, len(line), (text.encode(),))


def test_several_keys_come_in_the_order_asked_for(tmp_path):
    line = json.dumps({"a": "1", "b": "2", "c": "3"}).encode()
    (document,) = records_of(tmp_path, line, ["c", "a"])
    assert document.texts == (b"3", b"1")


def test_plain_text_is_one_document(tmp_path):
    content = "line 1\r\n\n\u00e9 \0".encode()
    assert records_of(tmp_path, content, format="text") == [
        Document(str(tmp_path / "input"), 1, len(content), (content,))
    ]


def test_unusable_plain_text_is_named(tmp_path):
    (refusal,) = records_of(tmp_path, b"1\n2\n\xff", format="text")
    assert refusal[1:] == (3, 5, "invalid UTF-8", "byte 4: invalid start byte")
    (refusal,) = records_of(tmp_path, b"", format="text")
    assert (refusal.line, refusal.reason) == (1, "empty text")


def test_batches_keep_every_record_and_its_order(tmp_path):
    records = records_of(tmp_path, (GOOD + b"{}\n") * 10)
    batches = list(in_batches(iter(records), 40))
    assert [d for batch in batches for d in batch.documents] == records[::2]
    assert [r for batch in batches for r in batch.refusals] == records[1::2]
    assert sum(batch.size for batch in batches) == 10 * len(GOOD + b"{}\n")
    assert all(40 <= batch.size < 40 + len(GOOD) for batch in batches[:-1])


def test_refusals_alone_make_a_batch(tmp_path):
    (batch,) = in_batches(records_of(tmp_path, b"", format="text"), 40)
    assert [refusal.reason for refusal in batch.refusals] == ["empty text"]


@pytest.mark.parametrize("size", range(1, 70))
def test_pieces_together_are_the_file_and_know_their_lines(tmp_path, size):
    path, rng = tmp_path / "input", random.Random(size)
    texts = ["x" * rng.randrange(1, 60) for _ in range(30)]
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(content)
    found = []
    for start in range(0, len(content), size):
        before = lines_before(str(path), start)
        for record in read_piece(Piece(str(path), start, start + size), "jsonl", ["text"]):
            found.append((record.line + before, record.texts[0].decode()))
    assert found == list(enumerate(texts, 1))


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_separators_cut_a_file_into_documents(tmp_path, monkeypatch, block):
    monkeypatch.setattr("megatron_ngpt.data.sources.text._BLOCK", block)
    content = b"one\n<|end|>two\n\nlines<|end|><|end|>\xff<|end|>last\n<|end|>\n"
    found = records_of(tmp_path, content, format="text", separator="<|end|>")
    texts = [r.texts[0] if isinstance(r, Document) else r.reason for r in found]
    assert texts == [b"one\n", b"two\n\nlines", "empty text", "invalid UTF-8", b"last\n"]
    assert [record.line for record in found] == [1, 2, 4, 4, 4]


def test_parquet_rows_are_documents(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"text {i}" for i in range(1000)]
    texts[3], texts[5] = None, ""
    path = tmp_path / "input.parquet"
    pq.write_table(pa.table({"n": range(1000), "text": texts}), path, row_group_size=300)
    found = list(read_piece(Piece(str(path)), "parquet", ["text"]))
    assert [record.line for record in found] == list(range(1, 1001))
    assert [record.reason for record in found if isinstance(record, Refusal)] == [
        "no string",
        "empty text",
    ]
    assert found[999].texts == (b"text 999",)
    with pytest.raises(ValueError, match="no column 'body'"):
        list(read_piece(Piece(str(path)), "parquet", ["body"]))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no complete Parquet file"):
        list(read_piece(Piece(str(path)), "parquet", ["text"]))


def test_a_damaged_file_ends_with_a_refusal(tmp_path):
    path = tmp_path / "input.jsonl.gz"
    content = gzip.compress(b"".join(GOOD for _ in range(100_000)))
    path.write_bytes(content[:-100])
    *documents, refusal = read_piece(Piece(str(path)), "jsonl", ["text"])
    assert refusal.reason == "damaged file"
    assert 0 < len(documents) == refusal.line - 1
