"""The two commands as a user runs them."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ngpt.data.indexed import IndexedDataset
from megatron_ngpt.data.tokenizer import SentencePieceTokenizer

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SOURCES = f"{Path(json.__file__).parent}/*.py"


def command(tool, *arguments):
    return [sys.executable, TOOLS / f"{tool}.py", *map(str, arguments)]


def run(tool, *arguments):
    return subprocess.run(command(tool, *arguments), capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tokenizer from the command."""
    path = tmp_path_factory.mktemp("model") / "json.model"
    done = run(
        "train_tokenizer",
        "--input",
        SOURCES,
        "--format",
        "text",
        "--output",
        path,
        "--vocab-size",
        500,
    )
    assert done.returncode == 0, done.stderr
    assert f"{path}: 500 pieces" in done.stdout
    return path


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}\n"}) + "\n" for i in range(100)))
    return path


def test_from_source_files_to_a_corpus_and_back(model, tmp_path):
    arguments = ["--input", SOURCES, "--format", "text", "--tokenizer-model", model, "--append-eod"]
    done = run("preprocess_data", *arguments, "--output-prefix", tmp_path / "new" / "json")
    assert done.returncode == 0, done.stderr
    assert "encoded by gigatoken" in done.stderr
    made, tokenizer = (
        IndexedDataset(tmp_path / "new" / "json_text_document"),
        SentencePieceTokenizer(model),
    )
    sources = sorted(Path(json.__file__).parent.glob("*.py"))
    assert made.document_count == len(sources)
    for number, source in enumerate(sources):
        *ids, end = made.document(number)
        assert end == tokenizer.eos_id
        assert tokenizer.decode(ids) == source.read_text()
    assert f"{len(sources)} documents, {made.token_count} tokens" in done.stdout


def test_megatrons_flags(model, corpus, tmp_path):
    done = run(
        *("preprocess_data", "--input", corpus, "--json-keys", "text", "--workers", 2),
        *("--output-prefix", tmp_path / "out", "--tokenizer-type", "GPTSentencePieceTokenizer"),
        *("--tokenizer-model", model, "--append-eod", "--log-interval", 10),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"100 documents, .* MB/s, .* tokens/s, 0 s left", done.stderr)
    assert IndexedDataset(tmp_path / "out_text_document").document_count == 100


def test_a_fault_is_one_line_and_exit_code_2(model, corpus, tmp_path):
    corpus.write_text(corpus.read_text() + '{"text": "half a li')
    arguments = ["--input", corpus, "--output-prefix", tmp_path / "out", "--tokenizer-model", model]
    done = run("preprocess_data", *arguments)
    assert done.returncode == 2
    assert f"error: {corpus}:101: half-written last line" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [corpus.name]

    done = run("preprocess_data", *arguments, "--on-error", "skip")
    assert done.returncode == 0
    assert "100 documents" in done.stdout
    assert "left out: 1 half-written last line" in done.stdout
    assert f"{corpus}:101: half-written" in done.stdout


@pytest.mark.parametrize(
    ("tool", "arguments", "message", "code"),
    [
        ("preprocess_data", ["--tokenizer-model", "no.model"], "--tokenizer-model", 2),
        ("train_tokenizer", ["--vocab-size", 99999], "--vocab-size 99999 is too large", 1),
        ("train_tokenizer", ["--vocab-size", 500, "--json-key", "no"], "missing key", 1),
    ],
)
def test_what_cannot_work_is_one_line(corpus, tmp_path, tool, arguments, message, code):
    out = "--output-prefix" if tool == "preprocess_data" else "--output"
    done = run(tool, "--input", corpus, out, tmp_path / "out", *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [corpus.name]


def test_training_can_leave_out_what_it_cannot_read(tmp_path):
    (tmp_path / "a.txt").write_text("some words to learn from\n" * 50)
    (tmp_path / "b.txt").write_bytes(b"\xff")
    arguments = ["--input", tmp_path / "*.txt", "--format", "text", "--vocab-size", 280]
    done = run("train_tokenizer", *arguments, "--output", tmp_path / "m.model")
    assert (done.returncode, "b.txt:1: invalid UTF-8" in done.stderr) == (1, True)
    done = run(
        "train_tokenizer", *arguments, "--output", tmp_path / "m.model", "--on-error", "skip"
    )
    assert done.returncode == 0
    assert "left out: 1 invalid UTF-8" in done.stdout


@pytest.fixture
def blocked(model, tmp_path):
    """A job that has begun and waits for the rest of its input, and its folder."""
    pipe, out = tmp_path / "pipe.jsonl", tmp_path / "out"
    os.mkfifo(pipe)
    arguments = ["--input", pipe, "--output-prefix", out / "c", "--tokenizer-model", model]
    job = subprocess.Popen(
        command("preprocess_data", *arguments),
        stderr=subprocess.PIPE,
        # a shell that starts the tests in the background has them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with pipe.open("w") as writer:
        writer.write(json.dumps({"text": "a document\n"}) + "\n")
        writer.flush()
        deadline = time.monotonic() + 60
        while not (out / "c.parts/job.json").exists():
            assert time.monotonic() < deadline
            assert job.poll() is None
            time.sleep(0.01)
        yield job, out
    job.kill()
    job.wait()
    job.stderr.close()


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_job_leaves_nothing(blocked, stop, code):
    job, out = blocked
    job.send_signal(stop)
    assert job.wait(30) == code
    assert list(out.iterdir()) == []


def test_a_killed_job_leaves_no_pair(blocked):
    job, out = blocked
    job.kill()
    job.wait()
    assert {path.name for path in out.iterdir()} == {"c.lock", "c.parts"}


def test_a_terminal_shows_a_bar(model, corpus, tmp_path):
    arguments = ["--input", corpus, "--output-prefix", tmp_path / "out", "--tokenizer-model", model]
    ours, its = pty.openpty()
    with subprocess.Popen(command("preprocess_data", *arguments), stdout=its, stderr=its):
        os.close(its)
        shown = b""
        # Linux says EIO when the last writer is gone.
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:
            pass
    os.close(ours)
    assert re.search(r"100%\|.*B/s, .*tokens/s", shown.decode())


@pytest.mark.parametrize(
    ("separator", "between"), [("é\\n\u2014", "é\n\u2014"), ("\\U0001f600\\\\n", "\U0001f600\\n")]
)
def test_a_separator_of_any_characters(model, tmp_path, separator, between):
    """Escapes are replaced, everything else is what it is; one that never comes up is told."""
    (tmp_path / "t.txt").write_text(between.join(["one", "two", "three"]), encoding="utf-8")
    options = ("--input", tmp_path / "t.txt", "--format", "text", "--tokenizer-model", model)
    done = run(
        "preprocess_data", *options, "--output-prefix", tmp_path / "o", "--separator", separator
    )
    assert "3 documents" in done.stdout, done
    assert "comes up in no file" not in done.stdout
    done = run(
        "preprocess_data", *options, "--output-prefix", tmp_path / "o", "--separator", "é\u2014"
    )
    assert "1 documents" in done.stdout, done
    assert "--separator comes up in no file: each became one document" in done.stdout
