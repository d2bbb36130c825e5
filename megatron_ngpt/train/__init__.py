"""The training loop, evaluation, metrics and generation."""
