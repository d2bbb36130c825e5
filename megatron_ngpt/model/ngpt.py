"""The normalized transformer and the GPT it is compared with, as plain single-device modules.

Source: arXiv 2410.01131; NVIDIA/ngpt ``model.py`` (commit ed19eb2). Deviations are listed in
docs/architecture.md. Shapes: B batch, T tokens, D width, V token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.config.model import LayerScale
from megatron_ngpt.model.again import computed_again, in_tiles, on_host
from megatron_ngpt.model.attention import (
    FirstValues,
    KeyValueCache,
    build_attention,
    rope_scaling,
)
from megatron_ngpt.model.head import Head
from megatron_ngpt.model.mlp import build_mlp
from megatron_ngpt.model.part import Part
from megatron_ngpt.ops.attention import Attend, sdpa_attention
from megatron_ngpt.ops.documents import Documents
from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.ops.hypersphere import Scale, residual_step
from megatron_ngpt.ops.linear import Embedding
from megatron_ngpt.ops.logits import precondition
from megatron_ngpt.ops.norm import RMSNorm
from megatron_ngpt.ops.other_spheres import step_along_arc, step_from_anywhere
from megatron_ngpt.ops.rope import rotary_table

Branch = Callable[[Tensor], Tensor]


class SphereResidual(nn.Module):
    """nGPT: step on the sphere from h towards branch(h)."""

    def __init__(
        self, model: ModelConfig, alpha: LayerScale, ops: Operations, eps: float = 0.0
    ) -> None:
        super().__init__()
        self.alpha = Scale(model.width, *alpha)
        if model.residual == "slerp":
            self.step = partial(step_along_arc, eps=eps)
        elif model.on_one_sphere:
            self.step = partial(residual_step, eps=eps, ops=ops)
        else:
            self.step = partial(step_from_anywhere, eps=eps)

    def forward(self, h: Tensor, branch: Branch) -> Tensor:
        """[B, T, D] -> [B, T, D], unit vectors both."""
        return self.step(h, branch(h), self.alpha())


class PreNormResidual(nn.Module):
    """GPT: add branch(norm(h)) to h."""

    def __init__(self, width: int, eps: float, ops: Operations) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps, ops)

    def forward(self, h: Tensor, branch: Branch) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h, normed = self.norm.beside(h)
        return h + branch(normed)


class Block(nn.Module):
    """Attention, then MLP, each joined to the hidden state by its residual.

    Attributes set from outside:
        mlp_tile: tokens that the MLP works on at a time, each tile computed again; 0 for all.
    """

    def __init__(self, model: ModelConfig, attend: Attend, layer: int, ops: Operations) -> None:
        super().__init__()
        self.attention = build_attention(model, attend, layer, ops)
        self.mlp = build_mlp(model, layer, ops)
        self.attention_residual = _residual(model, ops, model.scale_at("alpha_attention", layer))
        self.mlp_residual = _residual(model, ops, model.scale_at("alpha_mlp", layer), model.mlp_eps)
        self.mlp_tile = 0

    def forward(
        self,
        h: Tensor,
        rotary: Tensor,
        cache: KeyValueCache | None = None,
        documents: Documents | None = None,
        first: FirstValues | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h = self.attention_residual(h, lambda x: self.attention(x, rotary, cache, documents, first))
        return self.mlp_residual(h, self._feed_forward)

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.mlp_tile:
            return in_tiles(self.mlp, x, self.mlp_tile)
        output: Tensor = self.mlp(x)
        return output


def _residual(
    model: ModelConfig, ops: Operations, alpha: LayerScale, eps: float = 0.0
) -> nn.Module:
    if model.is_ngpt:
        return SphereResidual(model, alpha, ops, eps)
    return PreNormResidual(model.width, model.norm_eps, ops)


class NGPT(nn.Module):
    """Language model: token ids in, logits or mean loss out; or one pipeline stage of it.

    Parameters are allocated, not initialised: values come from ``model.initial`` or a checkpoint.

    Attributes that parallelism sets from outside:
        mean_scale: s_z of this model -> its mean over the whole vocabulary.
        sequence_shards: how many ranks share the tokens of h.
        recompute: whether to keep only each block's input for backward, and
        keep: the outputs of these ops inside, named as in ``megatron_ngpt.keep``.
        offload: whether to keep what blocks keep in the host's memory.
        each_loss: whether to return, in place of the mean loss, what ``head_loss`` does for each.
    """

    def __init__(
        self,
        model: ModelConfig,
        dtype: torch.dtype = torch.float32,
        attend: Attend = sdpa_attention,
        part: Part | None = None,
        ops: Operations = REFERENCE,
    ) -> None:
        super().__init__()
        D, V = model.width, model.vocab_size
        part = part or Part(range(model.layers))
        self.config, self.part = model, part
        self.embed = Embedding(V, D, dtype) if part.first else None
        self.blocks = nn.ModuleDict({str(n): Block(model, attend, n, ops) for n in part.layers})
        normed = part.last and not model.is_ngpt
        self.final_norm = RMSNorm(D, model.norm_eps, ops) if normed else None
        self.head = self._head(ops) if part.last else None
        self.s_z = Scale(V, *model.scale_at("s_z", 0)) if part.last and model.is_ngpt else None
        self.mean_scale: Callable[[Tensor], Tensor] = torch.mean
        self.sequence_shards = 1
        self.recompute = self.offload = self.each_loss = False
        self.keep: tuple[str, ...] = ()

    def _head(self, ops: Operations) -> Head:
        model = self.config
        if not model.tied_embedding:
            return Head(model.width, model.vocab_size, 1 / model.hyperspheres, ops)
        assert self.embed is not None, "a tied head is on the rank of the embedding"
        head = Head(model.width, model.vocab_size, 1.0, ops)
        head.weight = self.embed.weight
        return head

    def forward(
        self,
        x: Tensor,
        targets_BT: Tensor | None = None,
        positions: Tensor | None = None,
        caches: Sequence[KeyValueCache] | None = None,
        first_BS: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Fp32 logits [B, T, V], or the mean cross-entropy in nats when targets are given.

        A part without the last layers returns hidden states [B, T, D].

        Args:
            x: token ids [B, T], or the hidden states that the part before this one returned.
            targets_BT: the ids that follow; only the last part looks at them.
            positions: [T] or [B, T]; 0..T-1 when not given.
            caches: one per block, for generation.
            first_BS: where each token's document begins, of the B whole sequences, of which the T
                tokens may be a part (``ops.documents.first_tokens``); attention keeps within
                documents when given.
            last_only: logits of the last token alone, [B, 1, V].
        """
        h = x if self.embed is None else self.embed(x)
        if positions is None:
            positions = torch.arange(h.shape[1] * self.sequence_shards, device=h.device)
        rotary = rotary_table(
            positions, self.config.rotary_dim, self.config.rope_theta, rope_scaling(self.config)
        )
        documents = None if first_BS is None else Documents(first_BS)
        first = FirstValues() if self.config.value_residual else None
        with on_host(self.offload and self.training, h.device):
            for number, block in enumerate(self.blocks.values()):
                if self.recompute and self.training:
                    h = computed_again(block, h, rotary, None, documents, first, keep=self.keep)
                else:
                    cache = None if caches is None else caches[number]
                    h = block(h, rotary, cache, documents, first)
        if self.head is None:
            return h
        if targets_BT is not None:
            return self._loss(h, targets_BT)
        return self.logits(h[:, -1:] if last_only else h)

    def _loss(self, h_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy, or with ``each_loss`` every token's."""
        assert self.head is not None, "only the last part predicts"
        scale = slope = None
        if self.s_z is not None:
            scale = self.s_z()
            if self.config.logit_preconditioning:
                slope = precondition(scale.detach(), self.mean_scale(scale.detach()))
        loss: Tensor = self.head(self._final(h_BTD), targets_BT, scale, slope, self.each_loss)
        return loss

    def _final(self, h_BTD: Tensor) -> Tensor:
        """What the head reads."""
        return h_BTD if self.final_norm is None else self.final_norm(h_BTD)

    def logits(self, h_BTD: Tensor) -> Tensor:
        """Fp32 logits [B, T, V] of final hidden states; nGPT scales them by s_z (eq. 3)."""
        assert self.head is not None, "only the last part predicts"
        logits_BTV: Tensor = self.head(self._final(h_BTD)).float()
        return logits_BTV if self.s_z is None else logits_BTV * self.s_z()
