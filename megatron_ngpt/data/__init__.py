"""Tokenizers, indexed datasets and the sample stream; imports nothing but config."""
