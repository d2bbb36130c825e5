"""Which setting a wrong name may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

# the ways in which jsonargparse words an unknown option and an unknown YAML key
_UNKNOWN = re.compile(
    r"unrecognized arguments: --([\w.-]+)"
    r"|Group '([\w.]+)' does not accept option '([\w.-]+)'"
    r"|Option '([\w.-]+)' is not accepted"
)

# what other projects call our settings
_ELSEWHERE = {
    "optim.lr": "learning_rate max_lr peak_lr base_lr",
    "optim.min_lr": "min_learning_rate lr_min end_lr final_lr",
    "optim.warmup_steps": "warmup warmup_iters lr_warmup_iters num_warmup_steps",
    "optim.decay_steps": "lr_decay_iters lr_decay_steps decay_iters",
    "optim.schedule": "lr_scheduler lr_scheduler_type lr_decay_style scheduler",
    "optim.betas": "beta1 beta2 adam_beta1 adam_beta2 adam_betas",
    "optim.eps": "adam_eps adam_epsilon epsilon",
    "optim.grad_clip": "clip_grad max_grad_norm gradient_clipping clip gradient_clip_val",
    "optim.weight_decay": "wd",
    "optim.zero_stage": "zero stage zero_optimization",
    "train.steps": "max_steps train_iters max_iters iterations num_steps total_steps train_steps",
    "train.global_batch": "global_batch_size batch_size train_batch_size batch "
    "gradient_accumulation_steps grad_accum",
    "train.micro_batch": "micro_batch_size per_device_train_batch_size device_batch_size "
    "train_micro_batch_size_per_gpu",
    "train.dtype": "precision mixed_precision bf16 fp32 torch_dtype",
    "train.recompute": "activation_checkpointing gradient_checkpointing recompute_activations",
    "train.stop_at": "exit_interval",
    "model.width": "hidden_size d_model n_embd dim embed_dim hidden_dim",
    "model.layers": "num_layers n_layer n_layers num_hidden_layers depth",
    "model.heads": "num_heads n_head n_heads num_attention_heads",
    "model.kv_heads": "num_kv_heads n_kv_heads num_key_value_heads num_query_groups",
    "model.ffn_width": "ffn_hidden_size intermediate_size d_ff ffn_dim mlp_dim",
    "model.vocab_size": "vocab padded_vocab_size n_vocab",
    "model.rope_theta": "rotary_base rope_base",
    "data.seq_len": "seq_length sequence_length max_seq_len block_size context_length "
    "max_position_embeddings ctx_len n_ctx",
    "data.train": "data_path dataset train_data data_prefix train_data_path",
    "data.valid": "valid_data_path val_data eval_data validation",
    "data.tokenizer": "tokenizer_model tokenizer_path tokenizer_name",
    "parallel.tp": "tensor_parallel tensor_model_parallel_size tensor_parallel_size",
    "parallel.pp": "pipeline_parallel pipeline_model_parallel_size pipeline_parallel_size",
    "parallel.cp": "context_parallel context_parallel_size sequence_parallel",
    "checkpoint.dir": "save save_dir checkpoint_dir",
    "checkpoint.every": "save_interval save_steps save_every checkpoint_interval",
    "checkpoint.keep": "save_total_limit keep_last",
    "eval.every": "eval_interval eval_steps val_check_interval",
    "eval.steps": "eval_iters",
    "logging.dir": "output_dir out_dir run_dir log_dir tensorboard_dir",
    "logging.every": "log_interval logging_steps log_every",
    "engine.attention": "flash_attention use_flash_attn attn_implementation",
    "engine.deepspeed_overrides": "deepspeed deepspeed_config",
}
_MEANT = {name: ours for ours, names in _ELSEWHERE.items() for name in names.split()}


def hint(message: str, keys: Sequence[str]) -> str:
    """Another line for an error message when it is about a key that means known ones."""
    found = _UNKNOWN.search(message)
    if not found:
        return ""
    key = ".".join(word for word in found.groups() if word).replace("-", "_")
    meant = likely(key, keys)
    return f"\n  did you mean --{' or --'.join(meant)}?" if meant else ""


def likely(key: str, keys: Sequence[str]) -> list[str]:
    """Known keys that a wrong one stands for: by spelling, then by meaning, then by its end."""
    leaf = key.rpartition(".")[2]
    same = [known for known in keys if known.endswith(f".{leaf}")]
    if key == leaf and same:
        return same
    if close := difflib.get_close_matches(key, keys, 1, cutoff=0.85):
        return close
    if leaf in _MEANT:
        return [_MEANT[leaf]]
    return same or difflib.get_close_matches(key, keys, 1)
