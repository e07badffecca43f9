"""What the operator of a host has decided for all rollouts: `glm.toml`, beside the settings of the service."""

from __future__ import annotations

import tomllib

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from deploy.errors import Refused
from deploy.host import Host

__all__ = ["Hooks", "Policy"]


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


class Policy(BaseModel):
    """All of it; a host without the file has the defaults."""

    model_config = ConfigDict(extra="forbid")

    hooks: Hooks = Hooks()

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
