"""Single-device maths: hypersphere, rotary embedding, attention, losses."""
