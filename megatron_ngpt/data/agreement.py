"""What corpora say of themselves, held against each other and against the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megatron_ngpt.config import Config
from megatron_ngpt.data.corpus import Share, Stage
from megatron_ngpt.data.flat import FlatDataset
from megatron_ngpt.data.known import Dataset
from megatron_ngpt.data.largest import largest_id
from megatron_ngpt.data.provenance import ANY, COMPARE_NOT, Provenance, check_tokenizer

_NAMED = 3
_BLOCK = 1 << 20


@dataclass(frozen=True)
class _Corpus:
    dataset: Dataset
    made: Provenance
    manifest: bool
    trained_on: bool

    @property
    def name(self) -> str:
        return self.dataset.prefix


def check_corpora(
    config: Config, stages: Sequence[Stage], valid: Sequence[Share]
) -> tuple[Config, list[str]]:
    """Refuse corpora that do not fit together, or not the run.

    Of pairs with a manifest nothing but that is read; of others the tokens, once (``largest_id``).

    Returns:
        The configuration with ``data.tokenizer_sha256``, and what is to be said: what was found
        odd, and what could not be checked.

    Raises:
        ValueError: naming corpus, setting and way out.
    """
    corpora = list(_corpora(stages, valid))
    config, notes = _same_tokenizer(config, corpora)
    for corpus in corpora:
        check_ids(config, corpus.dataset, corpus.made)
        _check_end(config, corpus)
    notes += _overlaps(corpora)
    vocabulary = max(corpus.made.vocab_size for corpus in corpora)
    if vocabulary > config.model.vocab_size:
        notes.append(
            f"the tokenizer has {vocabulary} ids, model.vocab_size = {config.model.vocab_size}: "
            "no text here needs the others, but prompts and other corpora may"
        )
    notes += _unmarked(config, corpora)
    if spelled := [c for c in corpora if c.made.special_texts]:
        count = sum(corpus.made.special_texts for corpus in spelled)
        ends = ", and end documents in the middle where it is data.eod"
        notes.append(
            f"{count} documents of {_names(spelled)} spell out a special token, which became its "
            f"id{ends if config.data.document_mask else ''}; --special-text of preprocess_data.py "
            "decides"
        )
    if unknown := [corpus for corpus in corpora if not corpus.manifest]:
        notes.append(
            f"not checked: which tokenizer made {_names(unknown)}, and what ends its documents "
            "(no manifest)"
        )
    return config, notes


def check_ids(config: Config, dataset: Dataset, made: Provenance | None = None) -> None:
    """Refuse a corpus with an id outside the vocabulary.

    Raises:
        ValueError: naming both.
    """
    made, size = made or Provenance(), config.model.vocab_size
    if np.iinfo(dataset.dtype).max < size and dataset.dtype.kind == "u":
        return
    largest = made.largest_id
    if largest is None and 0 < made.vocab_size <= size:
        return
    if largest is None:
        largest = largest_id(dataset, config.data.cache_dir)
    if largest >= size:
        raise ValueError(
            f"{dataset.prefix} holds token id {largest}, but model.vocab_size = {size} allows ids "
            f"from 0 to {size - 1}: set model.vocab_size to that of the tokenizer that made the "
            "corpus, or preprocess the text with the tokenizer of this model"
        )


def _corpora(stages: Sequence[Stage], valid: Sequence[Share]) -> Iterator[_Corpus]:
    """Each once."""
    seen: set[str] = set()
    training = [share for stage in stages for share in stage.shares]
    for trained_on, shares in ((True, training), (False, valid)):
        for share in shares:
            dataset = share.corpus.dataset
            if dataset.prefix not in seen:
                seen.add(dataset.prefix)
                made = Provenance.of(dataset)
                yield _Corpus(dataset, made or Provenance(), made is not None, trained_on)


def _same_tokenizer(config: Config, corpora: Sequence[_Corpus]) -> tuple[Config, list[str]]:
    data, notes = config.data, []
    wanted, source = data.tokenizer_sha256, "data.tokenizer_sha256"
    for corpus in corpora:
        known = corpus.made.tokenizer
        if known and wanted not in ("", ANY, known):
            raise ValueError(
                f"{corpus.name} and {source} are of different tokenizers "
                f"({corpus.made.tokenizer_file}, SHA-256 {known[:12]}, and {wanted[:12]}): the "
                f"same id means other text in each; preprocess one of them again{COMPARE_NOT}"
            )
        if known and not wanted:
            wanted, source = known, corpus.name
    if data.tokenizer and Path(data.tokenizer).is_file():
        found = check_tokenizer(wanted, data.tokenizer, "data.tokenizer", COMPARE_NOT)
        wanted = wanted or found
    elif data.tokenizer:
        notes.append(f"not checked: data.tokenizer = {data.tokenizer} is no file")
    return replace(config, data=replace(data, tokenizer_sha256=wanted)), notes


def _check_end(config: Config, corpus: _Corpus) -> None:
    data, made = config.data, corpus.made
    if not data.document_mask:
        return
    if data.eod >= config.model.vocab_size:
        raise ValueError(
            f"data.eod = {data.eod} is outside model.vocab_size = {config.model.vocab_size}"
        )
    if data.eod >= 0 and made.appended and made.eod not in (None, data.eod):
        raise ValueError(
            f"data.eod = {data.eod}, but the documents of {corpus.name} end with {made.eod}, as "
            "its manifest says: leave data.eod out"
        )
    if isinstance(corpus.dataset, FlatDataset) and not _holds(corpus.dataset, data.eod):
        raise ValueError(
            f"data.document_mask: {corpus.name} is a flat file without the id data.eod = "
            f"{data.eod}, so nothing says where its documents end: set data.eod to the id that "
            "does, or make a pair"
        )


def _holds(dataset: Dataset, token: int) -> bool:
    """Whether an id comes up; reads as far as that."""
    size = dataset.token_count
    blocks = (dataset.tokens(at, min(size, at + _BLOCK)) for at in range(0, size, _BLOCK))
    return any((block == token).any() for block in blocks)


def _unmarked(config: Config, corpora: Sequence[_Corpus]) -> Iterator[str]:
    unmarked = [corpus for corpus in corpora if corpus.made.appended is False]
    if unmarked and config.data.document_mask:
        yield (
            f"{_names(unmarked)} was made without --append-eod: its documents end where the .idx "
            "says, and the model will not learn to end one"
        )
    elif unmarked:
        yield (
            f"{_names(unmarked)} was made without --append-eod: its documents follow each other "
            "with nothing in between; data.document_mask keeps them apart all the same"
        )


def _overlaps(corpora: Sequence[_Corpus]) -> Iterator[str]:
    """Pairs made of one another: twice in training is said, training and validation refused."""
    known = [corpus for corpus in corpora if corpus.made.pieces]
    by_piece: dict[str, list[_Corpus]] = {}
    for corpus in known:
        for piece in {name for name, _ in corpus.made.pieces}:
            by_piece.setdefault(piece, []).append(corpus)
    told: set[tuple[str, str]] = set()
    for group in by_piece.values():
        for number, a in enumerate(group):
            for b in group[:number]:
                if (a.name, b.name) in told or not a.made.overlaps(b.made):
                    continue
                told.add((a.name, b.name))
                if a.trained_on != b.trained_on:
                    raise ValueError(
                        f"{a.name}, which is to validate on, and {b.name}, which is trained on, "
                        "hold the same documents, as their manifests say: split one of them "
                        "(tools/split_dataset.py) and take one side for each"
                    )
                if a.trained_on:
                    yield f"{a.name} and {b.name} hold some of the same documents (manifests)"


def _names(corpora: Sequence[_Corpus]) -> str:
    names = ", ".join(corpus.name for corpus in corpora[:_NAMED])
    more = len(corpora) - _NAMED
    return f"{names} and {more} more" if more > 0 else names
