"""Lines and files too long for memory are read as short ones are."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ngpt.data.sources import Document, jsonl, long, long_json, text
from megatron_ngpt.data.sources.jsonl import read_jsonl
from megatron_ngpt.data.sources.text import read_text


@pytest.fixture(params=[1, 5, 64], scope="module")
def small(request):
    """Everything is long, and read in parts of so many bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_json, "_PART", request.param)
        patch.setattr(long, "LONG", 8)
        patch.setattr(jsonl, "LONG", 8)
        patch.setattr(long_json, "LONG", 1 << 12)
        patch.setattr(text, "LONG", 8)
        patch.setattr(text, "_BLOCK", request.param)
        yield


def content(texts):
    return tuple(t if isinstance(t, bytes) else b"".join(t.parts(7)) for t in texts)


def read_both(line, keys, patch=None):
    """What a reader in parts and a whole one make of it: texts, or the reason against them."""
    (record,) = read_jsonl(io.BytesIO(line), "f", keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "LONG", 1 << 30)
        (whole,) = read_jsonl(io.BytesIO(line), "f", keys)
    assert record.size == whole.size == len(line)
    return [
        content(found.texts) if isinstance(found, Document) else found.reason
        for found in (record, whole)
    ]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    record=st.dictionaries(st.sampled_from(["a", "b", '"c\\', "d"]), anything),
    plain=st.booleans(),
    indent=st.sampled_from([None, (" ,  ", " :\t")]),
)
def test_a_line_in_parts_is_the_line(small, record, plain, indent):
    line = json.dumps(record, ensure_ascii=plain, separators=indent).encode() + b"   \n"
    for keys in (["a"], ["b", '"c\\']):
        found, whole = read_both(line, keys)
        assert found == whole


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "0123456789\xff"}\n',
        b'{"text": "0123456789\xc3"}\n',
        b'{"text": "0123456789\\x"}\n',
        b'{"text": "0123456789\\ud83d"}\n',
        b'{"text": "0123456789\\\\ud83d \\\\\\ud83d\\ude00 \\ud83d\\ude00"}\n',
        b'{"text": "0123456789\n',
        b'{"text": "0123456789',
        b'{"text": "0123456789\x01"}\n',
        b'{"text": "0123456789", "text": "9"}\n',
        b'{"text": "0123456789"} x\n',
        b'{"text": "0123456789", }\n',
        b'{"text": "0123456789" "b": 1}\n',
        b'{"b": [1, {"]": "}"}], "text": "0123456789"}\n',
        b'{"b": [1, {"]": "}"], "text": "0123456789"}\n',
        b'{"b": truth, "text": "0123456789"}\n',
        b'{"b": , "text": "0123456789"}\n',
        b'{"b": "0123456789"}\n',
        b'{"text": 12345678901234}\n',
        b'{"text": "", "b": "0123456789"}\n',
        b'["0123456789"]\n',
        b"{}                \n",
    ],
)
def test_what_is_wrong_with_a_line_is_found_in_parts(small, line):
    found, whole = read_both(line, ["text"])
    assert found == whole


def test_the_next_line_is_read_after_a_long_one_that_is_wrong(small):
    lines = b'{"text": "0123456789\\x", "b": "xxxxxxxxxxxxxxxxxxxxxxxxxxxx"}\n{"text": "good"}\n'
    wrong, good = read_jsonl(io.BytesIO(lines), "f", ["text"])
    assert wrong.reason == "invalid JSON"
    assert (good.line, content(good.texts)) == (2, (b"good",))


@settings(max_examples=100)
@given(parts=st.lists(st.text("ab\n\u00e9\U0001f600", max_size=30), min_size=1), cut=st.booleans())
def test_a_long_file_is_its_text(small, parts, cut):
    separator = "<>" if cut else ""
    file = separator.join(parts).encode()
    found = list(read_text(io.BytesIO(file), "f", ["text"], separator.encode()))
    expected = parts if cut else ["".join(parts)]
    if cut and not expected[-1].strip():
        expected = expected[:-1]
    texts = [content(r.texts)[0].decode() if isinstance(r, Document) else "" for r in found]
    assert texts == expected
    lines = [1 + sum(t.count("\n") for t in expected[:i]) for i in range(len(expected))]
    assert [record.line for record in found] == lines


def test_invalid_utf8_in_a_long_file_is_at_its_line(small):
    (refusal,) = read_text(io.BytesIO(b"1\n2\n\xc3\xa9\n\xff\n3\n"), "f", ["text"])
    assert (refusal.line, refusal.reason) == (4, "invalid UTF-8")
    assert refusal.detail == "byte 7: invalid start byte"
    (refusal,) = read_text(io.BytesIO(b"1\n\xc3"), "f", ["text"])
    assert (refusal.line, refusal.reason) == (2, "invalid UTF-8")
