"""Parameter names of the NGPT port for Hugging Face, and ours; configurations are in hf_config.py.

Source: NVIDIA's port proposed for transformers (PR 38276, head 0d276c3), and what
``megatron_ngpt/hf`` adds to it: a gate; Llama's norms for GPT; Microsoft's names for differential
attention. Scaling vectors are columns [n, 1] there, vectors [n] here; nothing else differs, so
tensors go both ways without a change of a bit.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_ROOT = {
    "model.embed_tokens.weight": "embed.weight",
    "lm_head.weight": "head.weight",
    "sz.weight": "s_z.value",
    "model.norm.weight": "final_norm.gain.value",
}
_BLOCK = {
    "self_attn.q_proj.weight": "attention.query.weight",
    "self_attn.k_proj.weight": "attention.key.weight",
    "self_attn.v_proj.weight": "attention.value.weight",
    "self_attn.o_proj.weight": "attention.output.weight",
    "self_attn.sqk.weight": "attention.s_qk.value",
    "mlp.up_proj.weight": "mlp.up.weight",
    "mlp.gate_proj.weight": "mlp.gate.weight",
    "mlp.down_proj.weight": "mlp.down.weight",
    "mlp.suv.weight": "mlp.s_u.value",
    "mlp.suv_gate.weight": "mlp.s_v.value",
    "attn_alpha": "attention_residual.alpha.value",
    "mlp_alpha": "mlp_residual.alpha.value",
    "input_layernorm.weight": "attention_residual.norm.gain.value",
    "post_attention_layernorm.weight": "mlp_residual.norm.gain.value",
    "self_attn.lambda_q1": "attention.mix.query_1",
    "self_attn.lambda_k1": "attention.mix.key_1",
    "self_attn.lambda_q2": "attention.mix.query_2",
    "self_attn.lambda_k2": "attention.mix.key_2",
    "self_attn.map_weight": "attention.mix.weight",
    "self_attn.map_scale": "attention.mix.scale",
    "self_attn.subln.weight": "attention.head_norm.gain.value",
}
_TO_ROOT = {ours: theirs for theirs, ours in _ROOT.items()}
_TO_BLOCK = {ours: theirs for theirs, ours in _BLOCK.items()}
_COLUMNS = ("s_qk.value", "s_u.value", "s_v.value", "s_z.value")


def our_name(theirs: str) -> str:
    """Our parameter for one of theirs.

    Raises:
        ValueError: the port has no parameter called so.
    """
    if theirs in _ROOT:
        return _ROOT[theirs]
    prefix, _, rest = theirs.removeprefix("model.layers.").partition(".")
    if not (theirs.startswith("model.layers.") and prefix.isdigit() and rest in _BLOCK):
        raise ValueError(f"{theirs} is no parameter of the NGPT port")
    return f"blocks.{prefix}.{_BLOCK[rest]}"


def their_name(ours: str) -> str:
    """Their parameter for one of ours; the opposite of :func:`our_name`."""
    if ours in _TO_ROOT:
        return _TO_ROOT[ours]
    _, number, rest = ours.split(".", 2)
    return f"model.layers.{number}.{_TO_BLOCK[rest]}"


def to_ours(tensor: Tensor) -> Tensor:
    """A column as a vector; everything else as it is."""
    return tensor.squeeze(-1) if tensor.dim() == 2 and tensor.shape[-1] == 1 else tensor


def to_theirs(ours: str, tensor: Tensor) -> Tensor:
    """A scaling vector as a column, but for alpha, which is a vector there too."""
    return tensor.unsqueeze(-1) if ours.endswith(_COLUMNS) else tensor


def from_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names and in our shapes."""
    return {our_name(name): to_ours(tensor) for name, tensor in tensors.items()}
