"""The networks as plain single-device modules, and the table of their parameters."""
