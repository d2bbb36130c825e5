"""What differential attention and the linear ensemble share: several maps a head, mixed and normed.

Shapes as in standard.py; M maps a head, J width of a map's queries and keys.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from megatron_ngpt.config import ModelConfig
from megatron_ngpt.model.attention.standard import Attention
from megatron_ngpt.ops.attention import Attend
from megatron_ngpt.ops.documents import Documents
from megatron_ngpt.ops.fused import REFERENCE, Operations
from megatron_ngpt.ops.norm import RMSNorm


class MixedAttention(Attention):
    """``RMSNorm(sum_m w_m softmax(q_m k_m) v)`` in every head, token by token.

    All maps go through one call of the attention function as heads of their own, queries and keys
    padded with zeros to the width of the values: fused kernels want equal widths, and no [T, T]
    matrix is made. Weights and norm are computed in fp32.
    """

    mix: nn.Module
    """() -> the weight of every map, fp32 [M]."""

    factor = 1.0
    """Constant on the normed output."""

    def __init__(
        self, model: ModelConfig, attend: Attend, layer: int, ops: Operations = REFERENCE
    ) -> None:
        super().__init__(model, attend, layer, ops)
        self.maps, self.kv_heads = model.maps, model.kv_heads
        self.head_norm = RMSNorm(model.head_dim, model.head_norm_eps, ops)

    def heads(
        self, q_BTNH: Tensor, k_BSKH: Tensor, v_BSKH: Tensor, documents: Documents | None
    ) -> Tensor:
        """Every head's output [B, T, N, H]; queries [B, T, N M, J], keys [B, S, K M, J]."""
        missing = (0, self.head_dim - self.map_dim)
        q_BTNH, k_BSKH = F.pad(q_BTNH, missing), F.pad(k_BSKH, missing)
        values = v_BSKH.repeat_interleave(self.maps, dim=2)
        found = self.by_map(self.attend(q_BTNH, k_BSKH, values, self.scale, documents))
        mixed_BTNH = (found.float() * self.mix()[:, None]).sum(-2)
        return (self.head_norm(mixed_BTNH) * self.factor).to(q_BTNH.dtype)

    def by_map(self, y: Tensor) -> Tensor:
        """[B, T, N M, H] as the attention function returns it -> [B, T, N, M, H]."""
        raise NotImplementedError
