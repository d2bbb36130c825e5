"""SentencePiece models: text to ids and back, and training them. Sole home of sentencepiece."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

# As user-defined pieces, which sentencepiece does not count as its end or begin.
_MARKS = ("</s>", "<s>", "<pad>", "<eos>", "<bos>", "<|endoftext|>", "<|end_of_text|>")


class SentencePieceTokenizer:
    """A SentencePiece ``.model`` file in use.

    Args:
        path: the model file.

    Attributes:
        path: the model file.
        vocab_size: number of ids; they run from 0 to ``vocab_size - 1``.
        eos_id: id that ends a document (Megatron's ``eod``), or None when the model has none.
        processor: sentencepiece's own object, for what this class does not offer.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is damaged or no SentencePiece model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"tokenizer {str(path)!r}: no such file; give a SentencePiece .model file as "
                "data.tokenizer (training) or --tokenizer-model (tools); tools/train_tokenizer.py "
                "makes one"
            )
        self.model = self.path.read_bytes()
        self.processor = sentencepiece.SentencePieceProcessor()
        try:
            self.processor.LoadFromSerializedProto(self.model)
        except RuntimeError as err:
            raise ValueError(
                f"tokenizer {str(path)!r}: {len(self.model)} bytes that are no complete "
                f"SentencePiece model ({err}); copy the file again, or give another one as "
                "data.tokenizer (training) or --tokenizer-model (tools)"
            ) from err
        self.vocab_size: int = self.processor.get_piece_size()
        eos = self.processor.eos_id()
        self.eos_id: int | None = eos if eos >= 0 else None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without begin or end marks.

        Raises:
            ValueError: when the text holds lone surrogates, which UTF-8 cannot express.
        """
        ids: list[int] = self.processor.encode(text.encode())
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of any ids, also of a part that begins or ends inside a character.

        Bytes that are no whole character become U+FFFD, control ids vanish, and ids outside the
        vocabulary (a model's padding rows) read like the unknown piece.
        """
        known, unknown = range(self.vocab_size), self.processor.unk_id()
        text: str = self.processor.decode([i if i in known else unknown for i in map(int, ids)])
        return text

    def has_pieces_across_spaces(self) -> bool:
        """Whether a piece goes on after a space that follows something else."""
        pieces = map(self.processor.id_to_piece, range(self.vocab_size))
        return any(re.search("[^\u2581]\u2581", piece) for piece in pieces)

    def special_texts(self) -> dict[int, str]:
        """Tokens with a meaning that a text can spell out, by id; control pieces it cannot."""
        model = self.processor
        ids = {name: model.piece_to_id(name) for name in _MARKS}
        return {
            number: name
            for name, number in ids.items()
            if not (model.is_control(number) or model.is_unknown(number))
        }

    def take_special_as_text(self) -> None:
        """Not here.

        Raises:
            ValueError: always.
        """
        pieces = ", ".join(self.special_texts().values())
        raise ValueError(
            f"--special-text plain: {self.path} has {pieces} as user-defined pieces, which "
            "SentencePiece always finds in a text; train it with control pieces, or take refuse"
        )

    def character_normalizer(self) -> sentencepiece.SentencePieceNormalizer:
        """sentencepiece's normaliser with the model's character rules alone: white space stays."""
        return sentencepiece.SentencePieceNormalizer(
            model_proto=self.model,
            add_dummy_prefix=False,
            escape_whitespaces=False,
            remove_extra_whitespaces=False,
        )


def train_tokenizer(
    texts: Iterable[str],
    output: str | Path,
    *,
    vocab_size: int,
    model_type: str = "bpe",
    byte_fallback: bool = True,
    character_coverage: float = 0.9999,
    normalization: str = "identity",
    max_lines: int = 10_000_000,
    verbose: bool = False,
) -> None:
    """Train a SentencePiece model whose ``decode(encode(text))`` gives the text back.

    White space is kept, digits are single pieces, ids 0, 1, 2 are ``<unk>``, ``<s>``, ``</s>``.
    The same texts and settings give the same file.

    Args:
        texts: documents; they are cut into lines, which is what sentencepiece learns from.
        output: the ``.model`` file, written under a temporary name and renamed when complete.
        vocab_size: number of pieces.
        model_type: "bpe" or "unigram".
        byte_fallback: have a piece for every byte, so that no text is unknown.
        character_coverage: share of all characters in the texts that get a piece of their own.
        normalization: sentencepiece's rule name; all but "identity" change the text for good.
        max_lines: learn from at most so many lines, drawn at random with a fixed seed.
        verbose: let sentencepiece log to stderr.

    Raises:
        ValueError: when the texts are empty or too small for ``vocab_size``.
    """
    written, lines = io.BytesIO(), _Lines(texts)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=byte_fallback,
            character_coverage=character_coverage,
            normalization_rule_name=normalization,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            input_sentence_size=max_lines,
            shuffle_input_sentence=True,
            # Longer lines would be left out silently.
            max_sentence_length=2**30,
            minloglevel=0 if verbose else 2,
        )
    except RuntimeError as err:
        if lines.failure:
            raise lines.failure from None
        raise ValueError(_training_failure(str(err), vocab_size)) from err
    _write_atomically(Path(output), written.getvalue())


class _Lines:
    """Lines of the texts; keeps what their iterator raises, as sentencepiece makes it a message."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                yield from filter(None, text.split("\n"))
        except BaseException as err:
            self.failure = err
            raise


def _training_failure(message: str, vocab_size: int) -> str:
    largest = re.search(r"<= *(\d+)", message)
    smallest = re.search(r"smaller than required_chars\. *\d+ vs (\d+)", message)
    if "sentences_.empty" in message:
        return "the input holds no text to learn from: check --input"
    if largest:
        return (
            f"--vocab-size {vocab_size} is too large for this text, which yields at most "
            f"{largest[1]} pieces: lower it or give more text"
        )
    if smallest:
        return (
            f"--vocab-size {vocab_size} is too small: bytes and single characters alone take "
            f"{smallest[1]} pieces; raise it or lower --character-coverage"
        )
    return f"sentencepiece could not train with --vocab-size {vocab_size}: {message}"


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
