"""What the operator of a host has decided for all rollouts: `glm.toml`, beside the settings of the service."""

from __future__ import annotations

import tomllib

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError, field_validator

from deploy.errors import Refused
from deploy.host import Host

__all__ = ["Hooks", "Limits", "Memory", "Policy"]


class Hooks(BaseModel):
    """Commands to run around a cutover, without a shell, the rollout as JSON on their stdin.

    What `pre_cutover` refuses does not go live. What the others answer is only noted.
    """

    model_config = ConfigDict(extra="forbid")

    pre_cutover: tuple[str, ...] = ()
    post_cutover: tuple[str, ...] = ()
    on_rollback: tuple[str, ...] = ()
    timeout: float = Field(default=30.0, gt=0)
    """Seconds that each may take."""

    @field_validator("pre_cutover", "post_cutover", "on_rollback")
    @classmethod
    def _are_commands(cls, commands: tuple[str, ...]) -> tuple[str, ...]:
        if not all(command.strip() for command in commands):
            raise ValueError("a command is empty")
        return commands


class Limits(BaseModel):
    """When a candidate that has requests is worse than the live slot, and when it is too bad by itself.

    Worse takes two things: a difference beyond the margin, and one that chance would show in fewer than `false_alarms`
    of the rollouts of an equal version. Times are in seconds, shares from 0 to 1.
    """

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    """False: nothing is compared and no check asked again; only a candidate's death is a reason to roll back."""
    false_alarms: float = Field(default=0.02, gt=0, lt=0.5)
    min_requests: int = Field(default=50, ge=10)
    """Answers of the candidate before anything is concluded from times; a fifth of them for errors."""
    error_margin: float = Field(default=0.01, ge=0, lt=1)
    """By how much its share of errors may be above the live slot's."""
    p95_margin: float = Field(default=0.2, ge=0)
    """By what part of the live slot's p95 (until the answer, and until its first token) its own may be longer."""
    bake_p95_margin: float = Field(default=0.3, ge=0)
    """The same in the bake, where the two were not asked at the same time, nor by the same clients."""
    min_difference: float = Field(default=0.02, ge=0)
    """A difference between two times that no client would notice."""
    max_error_rate: float | None = Field(default=None, gt=0, le=1)
    max_p95: float | None = Field(default=None, gt=0)
    max_ttft_p95: float | None = Field(default=None, gt=0)
    min_agreement: float | None = Field(default=None, gt=0, le=1)
    """Share of the mirrored greedy answers that must equal the live slot's; a new version may well answer otherwise."""
    checks_every: float = Field(default=10.0, gt=0)
    """Seconds after which the release's checks are asked again."""


class Memory(BaseModel):
    """What both slots together may take of the device, in bytes; None: what is free."""

    model_config = ConfigDict(extra="forbid")

    limit: ByteSize | None = None


class Policy(BaseModel):
    """All of it; a host without the file has the defaults."""

    model_config = ConfigDict(extra="forbid")

    hooks: Hooks = Hooks()
    analysis: Limits = Limits()
    memory: Memory = Memory()

    @classmethod
    def of(cls, host: Host) -> Policy:
        """Read it; raises Refused, naming the line or the key at fault."""
        try:
            return cls.model_validate(tomllib.loads(host.policy.read_text()))
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Refused(f"{host.policy}: {where}: {first['msg']}", hint="README.md shows what it may hold") from error
        except (OSError, ValueError) as error:
            raise Refused(f"{host.policy} cannot be read: {error}", hint="it is TOML") from error
