"""What the unit tells the server, read once from GLM_* environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The environment of one slot's server. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="GLM_", frozen=True)

    root: Path = Path("/srv/glm")
    runtime: Path = Path("/run/glm")
    slot: Literal["blue", "green"]

    workers: int = Field(default=1, ge=1)
    threads: int = Field(default=0, ge=0, description="of torch, a worker; 0: its share of the cores less one for HTTP")
    keep_alive: int = Field(default=75, ge=1, description="how long an idle client connection is kept")
    drain: int = Field(default=120, ge=0, description="how long a leaving worker waits for what it began")
    load_stall: int = Field(default=60, ge=1, description="a load that shows no progress for so long is hung")
    stall: int = Field(default=120, ge=1, description="an engine silent for so long while it has work is hung")
    handoff: bool = Field(default=True, description="pass idle connections to the owner; off only to show the loss")

    served_model: str = "glm-4.6v-flash"
    max_body: int = Field(default=32 << 20, ge=1)
    max_images: int = Field(default=16, ge=0)
    max_pixels: int = Field(default=50_000_000, ge=1, description="of one image, known before it is decoded")
    max_queue: int = Field(default=256, ge=1, description="interactive requests that wait for a row; then 429")
    max_wait: float = Field(default=60, gt=0, description="how long a request may wait for a row; then 429")
    max_seconds: float = Field(default=600, gt=0, description="an answer that takes longer ends with reason length")
    max_prompt_tokens: int = Field(default=32_768, ge=1)
    max_choices: int = Field(default=8, ge=1, description="`n` of one request")
    image_hosts: tuple[str, ...] = Field(default=(), description="hosts whose https image URLs are fetched, as JSON")
    image_timeout: float = Field(default=10, gt=0, description="to fetch one image")
    max_image_bytes: int = Field(default=20 << 20, ge=1, description="of one fetched image")
    boxes: bool = Field(default=False, description="keep <|begin_of_box|> and <|end_of_box|> around answers")

    state: Path = Field(default=Path("/var/lib/glm/batches"), description="where files and batches are stored")
    max_file: int = Field(default=200 << 20, ge=1, description="of one uploaded file")
    max_batch_lines: int = Field(default=50_000, ge=1, description="requests of one batch, as OpenAI has it")
    batch_rows: int = Field(default=8, ge=0, description="batch requests a worker runs at a time; 0: none here")
