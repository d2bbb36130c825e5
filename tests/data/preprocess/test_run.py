import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatron_ngpt.data.bulk import GigatokenEncoder, SentencePieceEncoder
from megatron_ngpt.data.indexed import IndexedDataset, IndexedWriter, dtype_for
from megatron_ngpt.data.preprocess import PreprocessJob, preprocess
from megatron_ngpt.data.preprocess.encode import map_in_order


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    for encoder in (GigatokenEncoder, SentencePieceEncoder):
        monkeypatch.setattr(encoder, "batch_bytes", 2000)


@pytest.fixture
def corpus(tmp_path, odd_texts, texts):
    """A JSON Lines file of odd and real texts, none empty, each with a title; and its texts."""
    documents = [text for text in [*odd_texts[:600], *texts, "last"] if text]
    path = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"title": f"no. {i}", "text": text}) for i, text in enumerate(documents))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path, documents


def run(tokenizer, folder, *inputs, **options):
    folder.mkdir(exist_ok=True)
    job = PreprocessJob(
        inputs=[str(path) for path in inputs],
        output_prefix=f"{folder}/out",
        tokenizer=str(tokenizer.path),
        **options,
    )
    return preprocess(job, report=lambda line: None)


def contents(folder):
    """The pairs; not what describes them."""
    pairs = (path for path in folder.iterdir() if path.suffix not in (".json", ".jsonl"))
    return {path.name: path.read_bytes() for path in pairs}


def expected(tokenizer, folder, texts, key="text", end=()):
    """What Megatron-LM's loop writes: one document after another through the tokenizer."""
    folder.mkdir(exist_ok=True)
    with IndexedWriter(folder / f"out_{key}_document", dtype_for(tokenizer.vocab_size)) as writer:
        for text in texts:
            writer.add_document([*tokenizer.encode(text), *end])
    return contents(folder)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("encoder", ["gigatoken", "sentencepiece"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bytes_are_those_of_a_plain_loop(tokenizer, corpus, tmp_path, workers, encoder, end):
    path, documents = corpus
    summary = run(
        tokenizer, tmp_path / "ours", path, workers=workers, encoder=encoder, append_eod=end
    )
    loop = expected(tokenizer, tmp_path / "loop", documents, end=[tokenizer.eos_id] * end)
    assert contents(tmp_path / "ours") == loop
    assert summary.documents == len(documents)
    assert summary.size == path.stat().st_size


def test_every_key_has_its_pair(tokenizer, corpus, tmp_path):
    path, documents = corpus
    run(tokenizer, tmp_path / "ours", path, json_keys=["title", "text"])
    titles = [f"no. {i}" for i in range(len(documents))]
    assert contents(tmp_path / "ours") == {
        **expected(tokenizer, tmp_path / "text", documents),
        **expected(tokenizer, tmp_path / "title", titles, "title"),
    }


def test_several_files_are_one_corpus(tokenizer, tmp_path, texts):
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    run(tokenizer, tmp_path / "ours", tmp_path / "?.txt", format="text")
    assert contents(tmp_path / "ours") == expected(tokenizer, tmp_path / "loop", texts)


@pytest.fixture
def faulty(tmp_path):
    """Seven records of which two are good."""
    path = tmp_path / "faulty.jsonl"
    lines = ['{"text": "one"}', "", '{"text": ""}', '{"text": ""}', "{", '{"text": "two"}', '{"te']
    path.write_text("\n".join(lines))
    return path


def test_a_fault_ends_the_job_and_leaves_the_old_pair(tokenizer, faulty, corpus, tmp_path):
    run(tokenizer, tmp_path / "ours", corpus[0])
    before = contents(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"faulty.jsonl:2: blank line.*--on-error skip"):
        run(tokenizer, tmp_path / "ours", corpus[0], faulty)
    assert contents(tmp_path / "ours") == before


@pytest.mark.parametrize("workers", [1, 3])
def test_faults_are_left_out_and_counted(tokenizer, faulty, tmp_path, workers):
    summary = run(tokenizer, tmp_path / "ours", faulty, on_error="skip", workers=workers)
    loop = expected(tokenizer, tmp_path / "loop", ["one", "two"])
    assert contents(tmp_path / "ours") == loop
    assert summary.documents == 2
    assert summary.refused == {
        "empty text": 2,
        "blank line": 1,
        "invalid JSON": 1,
        "half-written last line": 1,
    }
    assert [refusal.line for refusal in summary.first_refusals] == [2, 3, 4, 5, 7]


def test_only_a_few_refusals_are_kept(tokenizer, tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_text("\n" * 9000 + '{"text": "good"}\n')
    summary = run(tokenizer, tmp_path / "ours", path, on_error="skip")
    assert summary.refused == {"blank line": 9000}
    assert [refusal.line for refusal in summary.first_refusals] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("encoder", ["gigatoken", "sentencepiece"])
def test_text_without_a_token_counts_as_empty(make_tokenizer, tmp_path, encoder):
    trimming = make_tokenizer(normalization_rule_name="nmt_nfkc")
    path = tmp_path / "spaces.jsonl"
    pairs = [("a b", "c"), ("  ", "d"), ("e", "\n"), ("f f f", "g g")]
    path.write_text("".join(json.dumps({"text": a, "more": b}) + "\n" for a, b in pairs))
    summary = run(
        trimming,
        tmp_path / "ours",
        path,
        on_error="skip",
        json_keys=["text", "more"],
        encoder=encoder,
    )
    assert contents(tmp_path / "ours") == {
        **expected(trimming, tmp_path / "text", ["a b", "f f f"]),
        **expected(trimming, tmp_path / "more", ["c", "g g"], "more"),
    }
    assert summary.refused == {"empty text": 2}
    with pytest.raises(ValueError, match=r"spaces.jsonl:2: empty text \(it encodes to no token"):
        run(trimming, tmp_path / "refused", path, json_keys=["text", "more"])


def test_no_document_is_no_corpus(tokenizer, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"no document can be used; left out: {'blank line': 2}"):
        run(tokenizer, tmp_path / "ours", tmp_path / "*.jsonl", on_error="skip")
    assert contents(tmp_path / "ours") == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(workers=-1), "--workers -1"),
        (dict(log_interval=0), "--log-interval 0"),
        (dict(json_keys=["text", "text"]), "twice"),
        (dict(json_keys=["text", "title"], format="text"), "no keys"),
    ],
)
def test_settings_that_cannot_work(tokenizer, corpus, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tokenizer, tmp_path / "ours", corpus[0], **options)


def test_an_end_mark_needs_a_tokenizer_that_has_one(make_tokenizer, corpus, tmp_path):
    with pytest.raises(ValueError, match="--append-eod"):
        run(make_tokenizer(eos_id=-1), tmp_path / "ours", corpus[0], append_eod=True)


def test_a_large_vocabulary_takes_four_bytes_a_token(tokenizer, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "megatron_ngpt.data.preprocess.encode.dtype_for", lambda size: dtype_for(70_000)
    )
    run(tokenizer, tmp_path / "ours", corpus[0])
    made = IndexedDataset(tmp_path / "ours" / "out_text_document")
    assert made.dtype == "int32"
    assert made.document(0).tolist() == tokenizer.encode(corpus[1][0])


def test_results_keep_their_order_when_the_first_is_slowest():
    def slow_at_first(number):
        time.sleep(0.05 if number == 0 else 0)
        return number

    with ThreadPoolExecutor(3) as pool:
        assert list(map_in_order(pool, slow_at_first, range(50), 3)) == list(range(50))


def test_reading_waits_for_encoding():
    """Nothing is taken from the input while ``ahead + 1`` items are on their way."""
    taken, release = [], threading.Event()

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    def wait(number):
        release.wait(10)
        return number

    with ThreadPoolExecutor(2) as pool:
        results = map_in_order(pool, wait, items(), 2)
        reader = threading.Thread(target=lambda: next(results))
        reader.start()
        time.sleep(0.1)
        assert len(taken) == 3
        release.set()
        reader.join()
        assert list(results) == list(range(1, 50))
