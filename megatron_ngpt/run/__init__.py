"""What lies in a run's folder: attempts, metrics, checkpoints' names. Imports no torch.

So that what only looks at a run, or decides whether to start it again, starts at once.
"""
