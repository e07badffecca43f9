"""The server's settings, read once from GLM_* environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The settings of one slot's server. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="GLM_", frozen=True)

    root: Path = Field(default=Path("/srv/glm"), description="directory of the releases and of the slots' symlinks")
    runtime: Path = Field(default=Path("/run/glm"), description="directory of the sockets and state files")
    slot: Literal["blue", "green"] = Field(description="the slot; the unit sets it")

    keys: Path = Field(default=Path("/etc/glm/keys"), description="file of API keys; without it requests need no key")
    policy: Path = Field(
        default=Path("/etc/glm/glm.toml"),
        description="file whose table [devices] names the GPUs of each slot, and [memory] how they are shared",
    )
    engine: Literal["model", "dummy"] = Field(default="model", description="dummy answers without a model; for tests")
    bind: str | None = Field(default=None, description="HOST:PORT to listen on without systemd, started by hand")
    workers: int = Field(default=0, ge=0, description="0: one for each GPU of the slot, or one on the CPU")
    threads: int = Field(default=0, ge=0, description="torch threads of a worker; 0: its share of the cores, less one")
    keep_alive: int = Field(default=75, ge=1, description="time until an idle client connection is closed")
    drain: int = Field(default=120, ge=0, description="time a stopping worker waits for its requests in flight")
    load_stall: int = Field(default=60, ge=1, description="time without progress after which a load counts as hung")
    stall: int = Field(default=120, ge=1, description="time without progress after which a busy engine counts as hung")
    head_timeout: float = Field(default=10, gt=0, description="time a client may take to send the head of a request")
    body_rate: int = Field(default=500, ge=1, description="bytes a second that a request's body must bring on average")
    max_read_rate: int = Field(default=32 << 20, ge=1, description="bytes a second that are read of one address")
    read_timeout: float = Field(default=60, gt=0, description="time for which a client may read nothing of its answer")
    keep_alive_comment: float = Field(
        default=10, gt=0, description="time of silence after which a stream gets a comment, so that no proxy closes it"
    )
    max_connections: int = Field(default=8192, ge=1, description="client connections of a worker")
    max_connections_per_address: int = Field(default=6144, ge=1, description="of these, from one address; more get 503")
    max_head: int = Field(default=1 << 16, ge=1024, description="size of a request's head")
    max_headers: int = Field(default=100, ge=1, description="headers of a request")
    max_url: int = Field(default=8192, ge=1, description="size of a request's URL")
    handoff: bool = Field(default=True, description="pass idle connections to the owner; off only in benchmarks")

    access_log: float = Field(
        default=1, ge=0, le=1, description="part of the requests that get a line in the log; 0: also none that failed"
    )
    access_log_rate: int = Field(
        default=500, ge=2, description="of these lines, a second of a worker; more are counted"
    )

    sentry_dsn: SecretStr | None = Field(
        default=None, description="address of a Sentry project that gets exceptions; needs the extra `sentry`"
    )
    traces: str | None = Field(
        default=None,
        pattern=r"^$|^https?://",
        description="address of an OTLP receiver that gets traces, such as http://127.0.0.1:4318/v1/traces; needs the "
        "extra `traces`",
    )
    traces_share: float = Field(
        default=1, ge=0, le=1, description="part of the requests that are traced if the client has not decided that"
    )

    served_model: str = Field(default="glm-4.6v-flash", description="name of the model in `/v1/models` and in answers")
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")], ...] = Field(
        default=(), description="origins whose pages may read answers, such as https://example.org, or *; a JSON list"
    )
    max_body: int = Field(default=32 << 20, ge=1, description="size of a request body other than an uploaded file")
    max_bodies: int = Field(default=512 << 20, ge=1, description="size of all bodies that are read or being worked on")
    max_structure: int = Field(
        default=150_000, ge=1, description="brackets, commas and colons of a JSON body, also inside strings"
    )
    client_share: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="part of the queue and of the bodies and pixels that one address may have",
    )
    max_images: int = Field(default=16, ge=0, description="images of one request")
    max_pixels: int = Field(default=50_000_000, ge=1, description="pixels of one image, checked before it is decoded")
    max_request_pixels: int = Field(default=100_000_000, ge=1, description="pixels of the images of one request")
    max_open_pixels: int = Field(
        default=200_000_000, ge=1, description="pixels of all images that are decoded and whose answers have not begun"
    )
    max_queue: int = Field(default=256, ge=1, description="interactive requests that may wait for a row; more get 429")
    client_rows: float = Field(
        default=0.9, gt=0, le=1, description="part of the rows that one address may hold even if no other waits"
    )
    max_wait: float = Field(default=60, gt=0, description="time a request may wait for a row before it gets 429")
    max_seconds: float = Field(default=600, gt=0, description="longer answers end with finish_reason length")
    max_prompt_tokens: int = Field(default=32_768, ge=1, description="tokens of one prompt, images included")
    max_schema: int = Field(default=1 << 16, ge=1, description="characters of a JSON schema for the answer")
    max_choices: int = Field(default=8, ge=1, description="largest `n` of a request")
    max_decode: int = Field(default=5, ge=1, description="processor time to read or to decode one image")
    image_hosts: tuple[str, ...] = Field(default=(), description="hosts that images may be fetched from; a JSON list")
    image_timeout: float = Field(default=10, gt=0, description="time limit to fetch one image")
    max_image_bytes: int = Field(default=20 << 20, ge=1, description="size of one fetched image")
    boxes: bool = Field(default=False, description="keep <|begin_of_box|> and <|end_of_box|> in responses")

    state: Path = Field(default=Path("/var/lib/glm/batches"), description="directory of files and batches")
    max_file: int = Field(default=200 << 20, ge=1, description="size of one uploaded file")
    max_stored: int = Field(default=20 << 30, ge=0, description="size of all stored files; more get 413")
    max_stored_per_key: int = Field(default=5 << 30, ge=0, description="the same of one API key, or of all without one")
    state_reserve: int = Field(default=256 << 20, ge=0, description="free bytes that files leave on the disk; else 507")
    file_share: float = Field(
        default=0.1, gt=0, description="seconds of processor time a second for the files and batches of one address"
    )
    max_batch_lines: int = Field(default=50_000, ge=1, description="requests of one batch; OpenAI allows as many")
    batch_rows: int = Field(default=8, ge=0, description="batch requests that a worker runs at a time; 0: none")
