"""One training step on DeepSpeed ZeRO: optimizer, projection, checkpoint."""
