"""Megatron-LM's and Megatron-DeepSpeed's command lines as configurations of this project."""
