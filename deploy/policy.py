"""The operator's settings for all rollouts of a host: `glm.toml`, beside the settings of the service."""

from __future__ import annotations

import tomllib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, field_validator

from deploy.errors import Refused
from deploy.host import Host
from service.contract import memory_policy, regular_file
from service.contract.devices import Devices
from service.contract.memory_policy import MemoryPolicy

__all__ = ["Hooks", "Limits", "Policy"]


class Hooks(BaseModel):
    """Commands to run around a cutover, without a shell, with the rollout as JSON on stdin.

    If a `pre_cutover` command fails, the candidate does not go live. Failures of the others are recorded only.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    pre_cutover: tuple[str, ...] = ()
    """Commands before the cutover. If one fails, the release does not go live."""
    post_cutover: tuple[str, ...] = ()
    """Commands beside the bake."""
    on_rollback: tuple[str, ...] = ()
    """Commands after a rollback."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds after which a command is killed."""

    @field_validator("pre_cutover", "post_cutover", "on_rollback")
    @classmethod
    def _are_commands(cls, commands: tuple[str, ...]) -> tuple[str, ...]:
        if not all(command.strip() for command in commands):
            raise ValueError("a command is empty")
        return commands


class Limits(BaseModel):
    """When a candidate that receives requests is worse than the live slot, and its absolute limits.

    A candidate is worse if it differs by more than a margin and the difference is significant: of the rollouts of an
    equal version, at most `false_alarms` are rolled back. Times are in seconds, shares from 0 to 1.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    enabled: bool = True
    """False: nothing is compared and no check is repeated; only a candidate that cannot serve is rolled back."""
    false_alarms: float = Field(default=0.02, gt=0, lt=0.5)
    """The share of the rollouts of an equal version that may be rolled back by chance."""
    min_requests: int = Field(default=50, ge=10)
    """Responses of the candidate before times are compared; errors are compared from a fifth of them."""
    error_margin: float = Field(default=0.01, ge=0, lt=1)
    """By how much the share of errors may exceed the live slot's."""
    p95_margin: float = Field(default=0.2, ge=0)
    """By what part of the live slot's p95 (of the whole response, and to the first token) the p95 may exceed it."""
    bake_p95_margin: float = Field(default=0.3, ge=0)
    """The same where both slots served at different times: in the bake, and with more than half of the requests. There
    each third of the period must be slower than the live slot's slowest period before, too."""
    min_difference: float = Field(default=0.02, ge=0)
    """A difference between two times that is ignored."""
    max_error_rate: float | None = Field(default=None, gt=0, le=1)
    """The largest share of errors, whatever the live slot's is; None: no limit."""
    max_p95: float | None = Field(default=None, gt=0)
    """The largest p95 of a response; None: no limit."""
    max_ttft_p95: float | None = Field(default=None, gt=0)
    """The largest p95 to the first token; None: no limit."""
    min_agreement: float | None = Field(default=None, gt=0, le=1)
    """The share of mirrored greedy responses that must equal the live slot's; None: a new version may differ."""
    checks_every: float = Field(default=10.0, gt=0)
    """Seconds after which the release's checks are repeated."""


class Policy(BaseModel):
    """The content of `glm.toml`; defaults without the file."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    hooks: Hooks = Hooks()
    analysis: Limits = Limits()
    memory: Annotated[MemoryPolicy, PlainValidator(memory_policy.parse)] = MemoryPolicy()
    devices: Annotated[Devices, PlainValidator(Devices.parse)] = Devices()

    @classmethod
    def of(cls, host: Host) -> Policy:
        """Read the policy of `host`; raises Refused if it is unreadable, or with the invalid line or key."""
        try:
            return cls.model_validate(tomllib.loads(regular_file.read(host.policy, follow=True).decode()))
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except PermissionError as error:  # of the file, or of its directory: then it need not exist
            raise Refused(
                f"this user may not read {host.policy}, the policy of the host",
                hint="run it as root"
                if not host.user
                else f"`ls -ld {host.policy.parent} {host.policy}` shows its owner",
            ) from error
        except OSError as error:
            raise Refused(f"{host.policy}, the policy of the host, cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Refused(f"{host.policy}: {where}: {first['msg']}", hint="README.md lists its keys") from error
        except (ValueError, RecursionError) as error:
            raise Refused(f"{host.policy} is not valid TOML: {error}", hint="README.md lists its keys") from error
