"""Where the time of a training step goes, and what it cannot go without."""
