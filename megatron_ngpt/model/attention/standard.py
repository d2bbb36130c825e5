"""Multi-head attention of nGPT and of the GPT baseline; grouped-query and multi-query included.

Shapes: B batch, T tokens, D width, N query heads, K key heads, H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.attention.cache import FirstValues, KeyValueCache
from megatron_ngpt.ops.attention import Attend
from megatron_ngpt.ops.documents import Documents
from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.ops.hypersphere import Scale
from megatron_ngpt.ops.linear import Linear, all_of
from megatron_ngpt.ops.other_spheres import soft_unit
from megatron_ngpt.ops.qk_norm import rotary, rotary_qk_norm
from megatron_ngpt.ops.rope import Scaling, for_both, rotate


def rope_scaling(model: ModelConfig) -> Scaling:
    """How a model's rotary embedding is stretched."""
    return Scaling(
        model.rope_scaling, model.rope_factor, model.rope_original, model.rope_frequencies
    )


class Attention(nn.Module):
    """Causal self-attention; nGPT normalises every head's queries and keys and scales them, and so
    does GPT if told to.

    The paper multiplies queries and keys by the same s_qk (eq. 15, 16). Only the product enters the
    logits, so its square is applied to the queries: the same maths, and the only reading of it
    that grouped-query attention allows.

    Other kinds override :meth:`heads`; to them, queries and keys have ``maps`` times as many heads,
    each ``map_dim`` wide.

    Attributes set from outside:
        whole: whether matrices may be used outside their modules: not with ZeRO-3, which gathers
            them inside, nor in a pipeline, whose schedules may split the backward of a matrix.
    """

    whole = True

    def __init__(
        self, model: ModelConfig, attend: Attend, layer: int, ops: Operations = REFERENCE
    ) -> None:
        super().__init__()
        D, self.head_dim, self.map_dim = model.width, model.head_dim, model.map_dim
        part = 1 / model.hyperspheres
        self.query = Linear(D, model.query_width, part)
        self.key = Linear(D, model.key_width, part)
        self.value = Linear(D, model.value_width, part)
        self.output = Linear(model.output_width, D, part)
        self.attend, self.ops, self.rope_style = attend, ops, model.rope_style
        self.s_qk = (
            Scale(model.s_qk_width, *model.scale_at("s_qk", layer)) if model.scales_qk else None
        )
        self.paired_dim = model.rotary_dim if model.s_qk.paired else 0
        self.scales_qk, self.soft_unit = model.scales_qk, _soft_unit(model)
        # unit queries and keys have products of order 1/sqrt(H): the factor is inverted (eq. 17)
        self.scale = model.map_dim ** (0.5 if model.scales_qk else -0.5)
        self.scale *= rope_scaling(model).temperature

    def forward(
        self,
        x_BTD: Tensor,
        table: Tensor,
        cache: KeyValueCache | None = None,
        documents: Documents | None = None,
        first: FirstValues | None = None,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; table is the rotary one of these T positions."""
        maps = (self.query, self.key, self.value)
        q, k, v = all_of(x_BTD, maps) if self.whole else [m(x_BTD) for m in maps]
        q_BTNH, k_BTKH = (y.unflatten(-1, (-1, self.map_dim)) for y in (q, k))
        v_BTKH = v.unflatten(-1, (-1, self.head_dim))
        if first is not None:
            v_BTKH = first.join(v_BTKH)
        q_BTNH, k_BTKH = self.turned(q_BTNH, table, self.s_qk), self.turned(k_BTKH, table)
        if cache is not None:
            k_BTKH, v_BTKH = cache.extend(k_BTKH, v_BTKH)
        return self.output(self.heads(q_BTNH, k_BTKH, v_BTKH, documents).flatten(-2))

    def turned(self, x: Tensor, table: Tensor, scale: Scale | None = None) -> Tensor:
        """Queries or keys [B, T, heads, J], rotated; perhaps also normed and scaled."""
        if not self.scales_qk:
            return rotary(x, table, self.rope_style, self.ops)
        s = None if scale is None else scale().square()
        if s is not None and s.numel() > 1:
            s = s.unflatten(0, (x.shape[2], -1))
            s = for_both(s, self.paired_dim, self.rope_style) if self.paired_dim else s
        if self.soft_unit is None:
            return rotary_qk_norm(x, table, s, self.rope_style, self.ops)
        normed = self.soft_unit(rotate(x, table, self.rope_style))
        return (normed if s is None else normed * s).to(x.dtype)

    def heads(
        self, q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, documents: Documents | None
    ) -> Tensor:
        """Every head's output [B, T, N, H]."""
        return self.attend(q_BTNH, k_BSKH, v_BSKH, self.scale, documents)


def _soft_unit(model: ModelConfig) -> Callable[[Tensor], Tensor] | None:
    """How queries and keys are normalised, None for unit vectors."""
    if not model.qk_norm:
        return lambda x: x
    if model.on_one_sphere:
        return None
    return partial(soft_unit, groups=model.hyperspheres, slack=model.sphere_slack)
