"""The parts of a run in which sequences have one length, in order: a function of the settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_ngpt.config.data import StageConfig
from megatron_ngpt.config.tree import Config


@dataclass(frozen=True)
class Phase:
    """Steps of one sequence length."""

    config: Config
    """The run's, with the seq_len, global_batch and micro_batch of this phase."""

    first_step: int
    """Steps done when it begins."""

    first_token: int
    """Tokens read when it begins."""

    end: int
    """Steps done when it ends."""

    setting: str
    """What in the configuration begins it."""

    @property
    def heading(self) -> str:
        """A line that tells when it begins, for all but the first."""
        when = f"after step {self.first_step}, {self.first_token:,} tokens"
        return f"{when}: {self.setting}\n" if self.first_step else ""


def phases(config: Config) -> tuple[Phase, ...]:
    """The phases of a run up to train.steps; one, without stages that change a length.

    A phase ends with the first step at or after its successor's ``tokens``.
    """
    found, setting = [], "data.seq_len"
    step = token = 0
    for number, stage in enumerate(config.data.stages):
        if not (stage.seq_len or stage.global_batch):
            continue
        step_tokens = config.train.global_batch * config.data.seq_len
        end = step + -(-(stage.tokens - token) // step_tokens)
        if end >= config.train.steps:
            break
        found.append(Phase(config, step, token, end, setting))
        step, token = end, token + (end - step) * step_tokens
        config, setting = _with(config, stage), f"data.stages[{number}]"
    return (*found, Phase(config, step, token, config.train.steps, setting))


def _with(config: Config, stage: StageConfig) -> Config:
    """Unless the stage says otherwise, a step and a micro-batch keep their tokens."""
    data, train = config.data, config.train
    length = stage.seq_len or data.seq_len
    batch = stage.global_batch or train.global_batch * data.seq_len // length
    most = max(1, train.micro_batch * data.seq_len // length)
    micro = next(n for n in range(most, 0, -1) if batch % n == 0)
    return replace(
        config,
        data=replace(data, seq_len=length),
        train=replace(train, global_batch=batch, micro_batch=micro),
    )


def phase_problems(config: Config) -> Iterator[str]:
    """What keeps a change of length from losing and repeating no token."""
    unit = config.data.shuffle_unit
    before, *later = phases(config)
    for phase in later:
        name, length = phase.setting, phase.config.data.seq_len
        old_batch, old_length = before.config.train.global_batch, before.config.data.seq_len
        stage = config.data.stages[int(name.rpartition("[")[2][:-1])]
        if length != config.data.seq_len and (not unit or unit % length):
            yield (
                f"{name}.seq_len = {length} with data.shuffle_unit = {unit}: set data.shuffle_unit "
                "to a common multiple of all lengths from the first step on"
            )
        if not stage.global_batch and old_batch * old_length % length:
            yield (
                f"{name}.seq_len = {length}: the {old_batch} x {old_length} tokens of a step are "
                f"no multiple of it: set {name}.global_batch"
            )
        if phase.first_token % length:
            yield (
                f"{name}.tokens = {stage.tokens}: the step before it ends at token "
                f"{phase.first_token}, no multiple of its seq_len = {length}: choose tokens, or "
                "batches, so that it is"
            )
        before = phase
