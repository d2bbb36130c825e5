import json

from benchmarks import preprocess
from megatron_ngpt.data.tokenizer import train_tokenizer


def test_every_contestant_has_a_speed(tmp_path, capsys):
    text, model = tmp_path / "text.jsonl", tmp_path / "tiny.model"
    lines = [f"line {i} of a text\n" for i in range(200)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    train_tokenizer(lines, model, vocab_size=280)
    arguments = ["--input", text, "--tokenizer-model", model, "--rounds", 1]
    assert preprocess.main([*map(str, arguments), "--json", str(tmp_path / "found.json")]) == 0

    found = json.loads((tmp_path / "found.json").read_text())
    assert found["text_MB"] == text.stat().st_size / 1e6
    shown = capsys.readouterr().out
    for name in (
        "sentencepiece, 1 process",
        "sentencepiece, 2 processes",
        "ours, --encoder sentencepiece",
        "tokenizers",
        "gigatoken",
        "ours",
    ):
        assert found[name]["wall"] > 0
        assert f"| {name} | {found[name]['wall']:.1f} |" in shown
