import base64
import json

import pytest

from megatron_ngpt.data import normalize
from megatron_ngpt.data.charsmap import CharacterRules, read_rules
from megatron_ngpt.data.normalize import TextNormalizer

RULES = {
    "identity": dict(normalization_rule_name="identity"),
    "nmt_nfkc": dict(normalization_rule_name="nmt_nfkc"),
    "nfkc_cf": dict(normalization_rule_name="nfkc_cf"),
    "keep spaces": dict(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=False),
    "no prefix": dict(normalization_rule_name="nfkc", add_dummy_prefix=False),
    # ASCII that joins, chains and grows
    "own": dict(normalization_rule_tsv="61 62\t63\n78\t79 79\n79\t7A\n41\tE9\n"),
}


def rules_of(tokenizer):
    loader = pytest.importorskip("gigatoken._load.sentencepiece")
    steps = json.loads(loader.sentencepiece_to_tokenizer_json(tokenizer.model))["normalizer"]
    (charsmap,) = [
        step["precompiled_charsmap"]
        for step in steps["normalizers"]
        if step["type"] == "Precompiled"
    ] or [""]
    return read_rules(base64.b64decode(charsmap))


def normalizer_of(tokenizer, trim_spaces=True, add_prefix=True):
    apply = tokenizer.character_normalizer().normalize
    return TextNormalizer(rules_of(tokenizer), apply, trim_spaces, add_prefix)


@pytest.fixture(scope="module", params=RULES)
def ruled(request, make_tokenizer, tmp_path_factory):
    """Options and the tokenizer trained with them."""
    options = dict(RULES[request.param])
    if "normalization_rule_tsv" in options:
        path = tmp_path_factory.mktemp("rules") / "rules.tsv"
        path.write_text(options["normalization_rule_tsv"])
        options["normalization_rule_tsv"] = path
    return options, make_tokenizer(**options)


def test_rules_are_those_sentencepiece_lists(ruled):
    options, tokenizer = ruled
    identity = options.get("normalization_rule_name") == "identity"
    listed = [] if identity else tokenizer.character_normalizer().decompile()
    rules = rules_of(tokenizer)
    assert rules.single == {source: text for source, text in listed if len(source) == 1}
    assert rules.followers == {char for source, _ in listed for char in source[1:]}
    assert rules.writes_spaces == any("  " in text for _, text in listed)


@pytest.fixture
def pair(ruled):
    """(ours, sentencepiece's), each str -> str with escaped spaces."""
    options, tokenizer = ruled
    ours = normalizer_of(
        tokenizer,
        options.get("remove_extra_whitespaces", True),
        options.get("add_dummy_prefix", True),
    )
    return (
        lambda text: ours(text.encode()).decode().replace(" ", "\u2581"),
        tokenizer.processor.normalize,
    )


def test_many_at_once_are_each_alone(ruled, odd_texts, texts, monkeypatch):
    options, tokenizer = ruled
    ours = normalizer_of(tokenizer, options.get("remove_extra_whitespaces", True))
    given = [*odd_texts, "", " ", " \u2581", "a  b ", "", *texts, "plain", "caf\xe9 \u2026", "\t\n"]
    encoded = [text.encode() for text in given]
    alone = [ours(text) for text in encoded]
    assert ours.many(encoded) == alone
    monkeypatch.setattr(normalize, "_GROUP_BYTES", 40)
    assert ours.many(encoded) == alone
    assert ours.many([]) == []


def test_normalises_as_sentencepiece_does(pair, odd_texts):
    ours, theirs = pair
    texts = [*odd_texts, "plain text, caf\xe9 \u2026 and more", " \u2581 "]
    assert [ours(text) for text in texts] == theirs(texts)


def test_plain_text_does_not_go_through_sentencepiece(make_tokenizer):
    tokenizer = make_tokenizer(normalization_rule_name="nmt_nfkc")
    seen = []

    def apply_rules(text):
        seen.append(text)
        return text

    normalize = TextNormalizer(rules_of(tokenizer), apply_rules, True, True)
    assert (
        normalize("a\n\n b \u2026 caf\xe9 \u2014\x07 \u6f22".encode())
        == " a b ... caf\xe9 \u2014 \u6f22".encode()
    )
    assert not seen
    normalize("e\u0301".encode())
    assert seen == ["e\u0301"]


def test_a_rule_that_writes_two_spaces_is_refused():
    with pytest.raises(ValueError, match="several spaces"):
        TextNormalizer(CharacterRules({"\t": "  "}, set(), True), str, True, True)
