import pytest

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


def normalizer_of(tokenizer, has_rules, trim_spaces=True, add_prefix=True):
    apply = tokenizer.character_normalizer()
    rules = apply.decompile() if has_rules else []
    return TextNormalizer(rules, apply.normalize, trim_spaces, add_prefix)


@pytest.fixture(scope="module", params=RULES)
def pair(request, make_tokenizer, tmp_path_factory):
    """(ours, sentencepiece's), each str -> str with escaped spaces."""
    options = dict(RULES[request.param])
    if "normalization_rule_tsv" in options:
        path = tmp_path_factory.mktemp("rules") / "rules.tsv"
        path.write_text(options["normalization_rule_tsv"])
        options["normalization_rule_tsv"] = path
    tokenizer = make_tokenizer(**options)
    ours = normalizer_of(
        tokenizer,
        request.param != "identity",
        options.get("remove_extra_whitespaces", True),
        options.get("add_dummy_prefix", True),
    )
    return (
        lambda text: ours(text.encode()).decode().replace(" ", "\u2581"),
        tokenizer.processor.normalize,
    )


def test_normalises_as_sentencepiece_does(pair, odd_texts):
    ours, theirs = pair
    texts = [*odd_texts, "plain text, caf\xe9 \u2026 and more", " \u2581 "]
    assert [ours(text) for text in texts] == theirs(texts)


def test_plain_text_does_not_go_through_sentencepiece(make_tokenizer):
    tokenizer = make_tokenizer(normalization_rule_name="nmt_nfkc")
    rules = tokenizer.character_normalizer().decompile()
    seen = []

    def apply_rules(text):
        seen.append(text)
        return text

    normalize = TextNormalizer(rules, apply_rules, True, True)
    assert (
        normalize("a\n\n b \u2026 caf\xe9 \u2014\x07 \u6f22".encode())
        == " a b ... caf\xe9 \u2014 \u6f22".encode()
    )
    assert not seen
    normalize("e\u0301".encode())
    assert seen == ["e\u0301"]


def test_a_rule_that_writes_two_spaces_is_refused():
    with pytest.raises(ValueError, match="several spaces"):
        TextNormalizer([("\t", "  ")], str, True, True)
