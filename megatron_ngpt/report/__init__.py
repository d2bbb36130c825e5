"""A run, or several, as one page to look at: tools/report.py. Imports no torch."""
