"""What a run reads: corpora, blends of them, and when one blend follows another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One corpus of a blend."""

    prefix: str
    """PREFIX of a PREFIX.bin / PREFIX.idx pair, or a flat file of uint16 ids ending in .bin."""

    weight: float = 1.0
    """Its part of the blend's samples, relative to the weights beside it."""

    epochs: int = 0
    """Passes over the corpus after which the run may not go on; 0 means no limit."""

    name: str = ""
    """What metrics call it; empty means the last part of prefix."""

    def __post_init__(self) -> None:
        """Replace "empty means ..." by its value."""
        object.__setattr__(self, "name", self.name or Path(self.prefix).name)


IGNORED = -100
"""Target that takes no part in the loss, torch's own: after a token that ends a document."""

Blend = tuple[CorpusConfig, ...] | str
"""Several corpora with their weights, or the prefix of the only one."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A blend, or a length of sequences, that takes over in the course of a run."""

    tokens: int
    """Tokens of the whole run after which the stage begins."""

    train: Blend = ""
    """Its blend; corpora of earlier stages go on where they were left. Empty keeps the last one."""

    seq_len: int = 0
    """Tokens per sequence from then on; 0 keeps the length. Needs data.shuffle_unit."""

    global_batch: int = 0
    """Sequences per step from then on; 0 keeps the tokens of a step."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Corpora as PREFIX of a PREFIX.bin / PREFIX.idx pair, and the tokenizer that made them."""

    train: Blend = ""
    """Prefix of the training corpus, or a list of {prefix, weight, epochs, name}."""

    valid: Blend = ""
    """Validation corpus or corpora; empty means the last valid_fraction of every one in train."""

    valid_fraction: float = 0.01
    """Share of the training documents held back for validation when valid is empty."""

    stages: tuple[StageConfig, ...] = ()
    """What changes later, as a list of {tokens, train, seq_len, global_batch}: each takes over
    after so many tokens."""

    cache_dir: str = ""
    """Folder on a local disk for copies of corpora whose prefix is a URL (s3://..., gs://...)."""

    tokenizer: str = ""
    """SentencePiece model or tokenizer.json; for text in and out, not for training itself."""

    tokenizer_sha256: str = ""
    """SHA-256 of the tokenizer's file; empty takes it from the corpora's manifests, which must
    agree. "any" compares nothing."""

    seq_len: int = 1024
    """Tokens per training sequence."""

    document_mask: bool = False
    """Keep the documents of a sequence apart: attention and positions begin anew in each, and what
    follows a document is no target. They end where the .idx says, and after every eod."""

    eod: int = -1
    """Id that ends a document, for document_mask; -1 means the tokenizer's. Flat files need it."""

    shuffle_unit: int = 0
    """Tokens in a row that are shuffled and dealt out together, a multiple of every seq_len that
    the run will have; 0 means seq_len, which then must not change."""

    prefetch: int = 2
    """Batches read ahead by the loader's thread; 0 reads in the training loop."""


def corpora_of(blend: Blend) -> tuple[CorpusConfig, ...]:
    """The corpora of a blend; none when it is empty."""
    if isinstance(blend, str):
        return (CorpusConfig(prefix=blend),) if blend else ()
    return blend


def blends_of(data: DataConfig) -> dict[str, tuple[CorpusConfig, ...]]:
    """The training blends of a run in order, by the setting that holds them."""
    later = {
        f"data.stages[{i}].train": stage.train for i, stage in enumerate(data.stages) if stage.train
    }
    return {name: corpora_of(blend) for name, blend in {"data.train": data.train, **later}.items()}
