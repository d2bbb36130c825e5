"""The parts of a run in which sequences have one length, in order: a function of the settings and
of where the run stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return self.config.train.global_batch * self.config.data.seq_len

    @property
    def last_token(self) -> int:
        """Tokens read when it ends."""
        return self.first_token + (self.end - self.first_step) * self.step_tokens

    @property
    def heading(self) -> str:
        """A line that tells when it begins, for all but the first of a run."""
        when = f"after step {self.first_step}, {self.first_token:,} tokens"
        return f"{when}: {self.setting}\n" if self.first_step else ""


def phases(config: Config, step: int = 0, token: int = 0) -> tuple[Phase, ...]:
    """The phases of a run up to train.steps; one, without stages that change a length.

    A phase ends with the first step at or after its successor's ``tokens``.

    Args:
        config: the run's, as it is now.
        step: steps that are done.
        token: tokens that these have read, perhaps in other batches than today's. The first phase
            is what is left of the one in force there.
    """
    found, setting = [], "data.seq_len"
    for number, stage in enumerate(config.data.stages):
        if not (stage.seq_len or stage.global_batch):
            continue
        if stage.tokens > token:
            step_tokens = config.train.global_batch * config.data.seq_len
            end = step + -(-(stage.tokens - token) // step_tokens)
            if end >= config.train.steps:
                break
            found.append(Phase(config, step, token, end, setting))
            step, token = end, found[-1].last_token
        config, setting = _with(config, stage), f"data.stages[{number}]"
    return (*found, Phase(config, step, token, max(step, config.train.steps), setting))


def last_trained(config: Config, tokens: int) -> Config:
    """The configuration of the last of the steps that have read so many tokens of a run."""
    found = config
    for stage in config.data.stages:
        if stage.seq_len or stage.global_batch:
            config = _with(config, stage)
            if stage.tokens > tokens - config.train.global_batch * config.data.seq_len:
                break
            found = config
    return found


def step_at(plan: Sequence[Phase], token: int) -> int:
    """Steps that are done before the one that reads a token."""
    phase = next((phase for phase in plan if token < phase.last_token), plan[-1])
    return phase.first_step + (token - phase.first_token) // phase.step_tokens


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


def token_at(plan: Sequence[Phase], step: int) -> int:
    """Tokens that are read once a step is done."""
    phase = next((phase for phase in plan if step <= phase.end), plan[-1])
    return phase.first_token + (step - phase.first_step) * phase.step_tokens


def length_problems(config: Config) -> Iterator[str]:
    """What would lose or repeat tokens at a change of length, wherever the run stands."""
    unit = config.data.shuffle_unit
    before, *later = phases(config)
    for phase in later:
        name, length = phase.setting, phase.config.data.seq_len
        old_batch, old_length = before.config.train.global_batch, before.config.data.seq_len
        if length != config.data.seq_len and (not unit or unit % length):
            yield (
                f"{name}.seq_len = {length} with data.shuffle_unit = {unit}: set data.shuffle_unit "
                "to a common multiple of all lengths from the first step on"
            )
        if not _stage(config, phase).global_batch and old_batch * old_length % length:
            yield (
                f"{name}.seq_len = {length}: the {old_batch} x {old_length} tokens of a step are "
                f"no multiple of it: set {name}.global_batch"
            )
        before = phase


def boundary_problems(config: Config, step: int = 0, token: int = 0) -> Iterator[str]:
    """Boundaries of a run that stands at a step and a token which cannot be where they were asked.

    Settings alone say where the steps of a run end until its batch is changed on the way. From then
    on whole steps have to end where a stage begins, or it would begin elsewhere than planned. Whole
    batches that were left out change nothing of where steps end.
    """
    planned = phases(config)
    changed = token != token_at(planned, step_at(planned, token))
    before, *later = phases(config, step, token)
    for phase in later:
        name, length = phase.setting, phase.config.data.seq_len
        tokens, reached = _stage(config, phase).tokens, phase.first_token
        if changed and reached != tokens:
            yield (
                f"{name}.tokens = {tokens}: the run stands at token {token}, read in other batches "
                f"than today's, and its steps of {before.step_tokens} tokens end at "
                f"{reached - before.step_tokens} and {reached}: set {name}.tokens to one of these, "
                "or train.global_batch so that whole steps lead there"
            )
        elif reached % length:
            yield (
                f"{name}.tokens = {tokens}: the step before it ends at token {reached}, no "
                f"multiple of its seq_len = {length}: choose tokens, or batches, so that it is"
            )
        before = phase


def unreached(config: Config, plan: Sequence[Phase]) -> Iterator[str]:
    """A line for every stage that begins only after the last step."""
    end = plan[-1]
    for number, stage in enumerate(config.data.stages):
        if stage.tokens >= end.last_token:
            yield (
                f"data.stages[{number}] never begins: it is at {stage.tokens:,} tokens, and "
                f"train.steps = {end.end} end at {end.last_token:,}"
            )


def _stage(config: Config, phase: Phase) -> StageConfig:
    """The stage that begins a phase, any but the first."""
    return config.data.stages[int(phase.setting.rpartition("[")[2][:-1])]
