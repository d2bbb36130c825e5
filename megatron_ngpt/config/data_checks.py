"""Blends and stages that cannot work."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence

from megatron_ngpt.config.data import CorpusConfig, DataConfig, blends_of, corpora_of


def data_problems(data: DataConfig) -> Iterator[str]:
    """What is impossible in the data section, each with the way out."""
    valid = corpora_of(data.valid)
    if not valid and not 0 <= data.valid_fraction < 1:
        yield f"data.valid_fraction = {data.valid_fraction}: must be in [0, 1)"
    if data.shuffle_unit % max(1, data.seq_len):
        yield (
            f"data.shuffle_unit = {data.shuffle_unit} is not a multiple of data.seq_len = "
            f"{data.seq_len}: samples are cut from units; take the longest length that is planned "
            "for the unit, or 0, which is another order of the corpus"
        )
    for setting, corpora in (*blends_of(data).items(), ("data.valid", valid)):
        yield from _blend(setting, corpora, data.cache_dir)
    for corpus in valid:
        if corpus.epochs:
            yield (
                f"data.valid: {corpus.prefix} has epochs = {corpus.epochs}, but every evaluation "
                "reads the same samples: leave epochs out"
            )
    every = [*valid, *(corpus for blend in blends_of(data).values() for corpus in blend)]
    flat = next((corpus.prefix for corpus in every if corpus.prefix.endswith(".bin")), "")
    if data.document_mask and data.eod < 0 and not data.tokenizer and flat:
        yield (
            f"data.document_mask: {flat} is a flat file, which does not say where documents end: "
            "set data.tokenizer, or data.eod to the id of the end-of-document token"
        )
    yield from _stages(data)
    yield from _names(data, valid)


def _blend(setting: str, corpora: Sequence[CorpusConfig], cache_dir: str) -> Iterator[str]:
    for corpus in corpora:
        if corpus.prefix.startswith(("[", "{")):
            yield (
                f"{setting} = {corpus.prefix}: no list of corpora; each needs a prefix and may "
                "have weight, epochs and name: [{prefix: A, weight: 0.7}, {prefix: B, weight: 0.3}]"
            )
        if "://" in corpus.prefix and not cache_dir:
            yield (
                f"{setting} = {corpus.prefix} is a URL: set data.cache_dir to a folder on a disk "
                "of every node, where a copy is kept"
            )
        if not (corpus.weight > 0 and math.isfinite(corpus.weight)):
            yield (
                f"{setting}: {corpus.prefix} has weight = {corpus.weight}: it must be above 0; "
                "leave out a corpus that is not to be read"
            )
        if corpus.epochs < 0:
            yield f"{setting}: {corpus.prefix} has epochs = {corpus.epochs}: 0 means no limit"
    counts = Counter(os.path.normpath(corpus.prefix) for corpus in corpora)
    for prefix, count in counts.items():
        if count > 1:
            yield (
                f"{setting} names {prefix} {count} times: name it once, with the sum of the weights"
            )


def _stages(data: DataConfig) -> Iterator[str]:
    before = 0
    for i, stage in enumerate(data.stages):
        if stage.tokens <= before:
            yield (
                f"data.stages[{i}].tokens = {stage.tokens}: must be above {before}, where the "
                "one before it begins"
            )
        if not (stage.train or stage.seq_len or stage.global_batch):
            yield f"data.stages[{i}] changes nothing: give it train, seq_len or global_batch"
        for name in ("seq_len", "global_batch"):
            if getattr(stage, name) < 0:
                yield f"data.stages[{i}].{name} = {getattr(stage, name)}: 0 keeps it"
        before = stage.tokens


def _names(data: DataConfig, valid: Sequence[CorpusConfig]) -> Iterator[str]:
    """Metrics tell validation corpora apart by name."""
    corpora = valid or [corpus for blend in blends_of(data).values() for corpus in blend]
    prefixes: dict[str, str] = {}
    for corpus in corpora:
        prefix = os.path.normpath(corpus.prefix)
        other = prefixes.setdefault(corpus.name, prefix)
        if other != prefix:
            yield f"{other} and {prefix} are both called {corpus.name}: give one of them a name"
