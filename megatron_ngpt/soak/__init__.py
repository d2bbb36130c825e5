"""Fault injection: a tiny run is killed, stopped and damaged at random, and has to end the same."""
