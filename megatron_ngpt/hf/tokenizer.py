"""A SentencePiece model as a fast tokenizer of Hugging Face."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from megatron_ngpt.data.tokenizer import SentencePieceTokenizer
from megatron_ngpt.extras import require

_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type
_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6  # piece.type
_SPACE = "▁"


def fast_tokenizer(tokenizer: SentencePieceTokenizer) -> PreTrainedTokenizerFast:
    """The same ids for the same text, and the same text for the same ids.

    Texts begin with no mark, as in training; the end mark also pads, on the left. Unlike
    SentencePiece, the result takes an end mark written out in a text for the mark itself, and with
    a unigram model the name of a byte, <0x0A>, for the byte if its characters are unknown.

    Raises:
        ValueError: the model is neither BPE nor unigram.
    """
    pb2 = require("sentencepiece.sentencepiece_model_pb2", "hf", "exporting a tokenizer")
    proto = pb2.ModelProto.FromString(tokenizer.model)
    fast = Tokenizer(_model(proto))
    fast.normalizer = _normalizer(proto.normalizer_spec)
    fast.decoder = _decoder(proto.normalizer_spec)
    marks = {"unk_token": proto.pieces[proto.trainer_spec.unk_id].piece}
    if tokenizer.eos_id is not None:
        marks["eos_token"] = marks["pad_token"] = proto.pieces[tokenizer.eos_id].piece
    made = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **marks,
    )
    symbols = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    made.add_tokens(symbols)
    return made


def _model(proto: Any) -> Any:
    spec = proto.trainer_spec
    if spec.model_type == _UNIGRAM:
        # a byte's name written out in a text is no byte: dearer than any spelling
        never = 100 * min(piece.score for piece in proto.pieces)
        pieces = [(p.piece, never if p.type == _BYTE else p.score) for p in proto.pieces]
        return models.Unigram(pieces, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    if spec.model_type != _BPE:
        raise ValueError(
            f"a SentencePiece model of type {spec.model_type} is neither BPE nor unigram"
        )
    return models.BPE(
        {piece.piece: number for number, piece in enumerate(proto.pieces)},
        _merges(proto),
        unk_token=proto.pieces[spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Pairs of pieces in the order SentencePiece merges them: by the score of what they make."""
    scores = {
        piece.piece: piece.score for piece in proto.pieces if piece.type in (_NORMAL, _USER_DEFINED)
    }
    found = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, left, right in sorted(found, key=lambda pair: pair[0])]


def _normalizer(spec: Any) -> Any:
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _decoder(spec: Any) -> Any:
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * spec.add_dummy_prefix)
