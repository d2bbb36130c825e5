"""Whole .bin/.idx pairs in, whole pairs out: manifests, merging, splitting, shuffling."""
