"""Studies: many runs of a few contestants, and what their losses say with which certainty."""
