"""What a topology costs before it is started: memory and communication per rank, as arithmetic."""
