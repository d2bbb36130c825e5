"""Sharded checkpoints that any topology resumes: torch.distributed.checkpoint plans, safetensors
files, a JSON index, no pickle.

A checkpoint is a folder ``step_00000100`` with ``index.json`` (which box of which tensor lies
where, and every file's size and checksum), ``state.json`` (step and data position), ``config.yaml``
and ``rank_00000_0.safetensors`` files. It is written under a temporary name and renamed when whole.
"""
