"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from megatron_ngpt.config import Config


def angle_cap(config: Config, lr: float) -> float:
    """Largest angle of a step at this learning rate, radians; 0 where there is no cap.

    arXiv 2608.01284 has a cap theta_max(t) that changes with time. Following the learning rate, it
    keeps its ratio to the angles that steps turn by, which are about proportional to the rate.
    """
    optim = config.optim
    if optim.angle_cap_schedule == "constant" or optim.lr == 0:
        return optim.angle_cap
    return optim.angle_cap * lr / optim.lr


def learning_rate(config: Config, step: int) -> float:
    """Learning rate of optimizer step ``step`` (0 is the first) of ``train.steps``.

    Warm-up rises linearly and reaches optim.lr at its last step; the decay ends at optim.min_lr
    with the run's last step. The logarithmic one is 1 - log(1 + r / rho) / log(1 + 1 / rho) of the
    way from min_lr to lr at progress r (arXiv 2608.01284).
    """
    optim, steps = config.optim, config.train.steps
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    peak = max(0, optim.warmup_steps - 1)  # the last step at optim.lr
    if optim.schedule == "wsd":
        peak = max(peak, steps - 1 - (optim.decay_steps or max(1, steps // 5)))
    progress = (step - peak) / max(1, steps - 1 - peak)
    progress = min(1.0, max(0.0, progress))
    if optim.schedule == "logarithmic":
        progress = math.log1p(progress / optim.curvature) / math.log1p(1 / optim.curvature)
    if optim.schedule == "cosine":
        progress = 0.5 * (1.0 - math.cos(math.pi * progress))
    return optim.lr + (optim.min_lr - optim.lr) * progress
