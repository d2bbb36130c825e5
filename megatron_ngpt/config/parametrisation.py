"""nuGPT: learning rates and initial values that carry over from a small model to a large one.

With ratios to a reference run, m_w of widths, m_L of layers and m_T of steps, the head width fixed:

    token embedding         lr m_T^(-1/3) m_w^(-1/2)
    hidden matrices         lr m_T^(-1/3) m_w^(-3/4)
    head                    lr m_T^(-1/3) m_w^(-3/4) / 2
    scaling vectors         lr m_T^(-1/3), stored at 0.03
    initial alpha           init / m_L
    initial s_z             init sqrt(m_w)

Source: arXiv 2604.27077v2, table 1. Its Adam has betas (0.9, 0.95) and eps 1e-16, without weight
decay, warm-up or clipping, and its cosine decays to a tenth.
"""

from __future__ import annotations

from megatron_ngpt.config.tree import Config


def learning_rate_factors(config: Config) -> dict[str, float]:
    """Factor on optim.lr by optimizer group of the parameter table."""
    groups = ("embedding", "matrix", "head", "vector")
    if config.model.parametrisation != "nugpt":
        return dict.fromkeys(groups, 1.0)
    width = config.model.width / (config.model.reference_width or config.model.width)
    steps = config.train.steps / (config.optim.reference_steps or config.train.steps)
    powers = {"embedding": -1 / 2, "matrix": -3 / 4, "head": -3 / 4, "vector": 0.0}
    constants = {"head": 0.5}
    return {
        group: constants.get(group, 1.0) * steps ** (-1 / 3) * width ** powers[group]
        for group in groups
    }
