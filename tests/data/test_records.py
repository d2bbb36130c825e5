import json

import pytest

from megatron_ngpt.data.records import (
    Document,
    Refusal,
    find_files,
    in_batches,
    read_jsonl,
    read_text,
)

GOOD = b'{"text": "good"}\n'


def records_of(tmp_path, content, keys=("text",), read=read_jsonl):
    path = tmp_path / "input"
    path.write_bytes(content)
    return list(read(path, keys))


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
    assert records_of(tmp_path, content, read=read_text) == [
        Document(tmp_path / "input", 1, len(content), (content,))
    ]


def test_unusable_plain_text_is_named(tmp_path):
    (refusal,) = records_of(tmp_path, b"1\n2\n\xff", read=read_text)
    assert refusal[1:] == (3, 5, "invalid UTF-8", "byte 4: invalid start byte")
    (refusal,) = records_of(tmp_path, b"", read=read_text)
    assert (refusal.line, refusal.reason) == (1, "empty text")


def test_files_come_in_the_order_given_and_globs_sorted(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "other.jsonl"):
        (tmp_path / name).touch()
    found = find_files([f"{tmp_path}/other.jsonl", f"{tmp_path}/**/*.txt"])
    assert [path.name for path in found] == ["other.jsonl", "a.txt", "b.txt", "c.txt"]


def test_a_name_with_brackets_is_a_name(tmp_path):
    path = tmp_path / "part[1].jsonl"
    path.touch()
    assert find_files([str(path)]) == [path]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["none*.jsonl"], "no such file"),
        (["."], "give a glob"),
        (["a.txt", "*.txt"], r"a\.txt was already given by 'a.txt'"),
    ],
)
def test_input_that_cannot_be_meant(tmp_path, monkeypatch, names, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=message):
        find_files(names)


def test_batches_keep_every_record_and_its_order(tmp_path):
    records = records_of(tmp_path, (GOOD + b"{}\n") * 10)
    batches = list(in_batches(iter(records), 40))
    assert [d for batch in batches for d in batch.documents] == records[::2]
    assert [r for batch in batches for r in batch.refusals] == records[1::2]
    assert sum(batch.size for batch in batches) == 10 * len(GOOD + b"{}\n")
    assert all(40 <= batch.size < 40 + len(GOOD) for batch in batches[:-1])


def test_refusals_alone_make_a_batch(tmp_path):
    (batch,) = in_batches(records_of(tmp_path, b"", read=read_text), 40)
    assert [refusal.reason for refusal in batch.refusals] == ["empty text"]
