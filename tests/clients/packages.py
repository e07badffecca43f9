"""The packages that are run against the server, their environments in `.clients/`, and what each of them offers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = HERE.parent.parent / ".clients"
PYTHON_ENVIRONMENTS = ("openai-3", "openai-2", "guidellm")
"""Each by the name of its file in requirements/; packages that exclude each other are in different ones."""

CELLS = {
    "text": "text",
    "stream": "stream",
    "picture": "picture",
    "tools": "tools, auto",
    "required": "some call required",
    "named": "one function required",
    "streamed_call": "call streamed",
    "schema": "JSON schema",
    "schema_with_tools": "schema and tools",
    "responses": "/v1/responses",
}
"""Every cell and its title in the table."""
CHAT = tuple(cell for cell in CELLS if cell != "responses")


@dataclass(frozen=True)
class Package:
    """A package, the file in programs/ that uses it, and the cells that it offers."""

    name: str
    program: str
    environment: str = "openai-3"
    cells: tuple[str, ...] = CHAT
    title: str = ""

    def __str__(self) -> str:
        return self.title or self.name

    @property
    def command(self) -> list[str]:
        """The command that runs the program; cells are its arguments, and its directory is that of the environment."""
        directory = ENVIRONMENTS / self.environment
        if self.environment == "node":
            return [f"{directory}/node_modules/.bin/node", f"{directory}/{self.program}"]
        return [f"{directory}/bin/python", str(HERE / "programs" / self.program)]

    @property
    def version(self) -> str | None:
        """The version that is installed, or None."""
        directory = ENVIRONMENTS / self.environment
        if self.environment == "node":
            description = directory / "node_modules" / self.name / "package.json"
            return str(json.loads(description.read_text())["version"]) if description.exists() else None
        path = [str(found) for found in directory.glob("lib/python*/site-packages")]
        return next((found.version for found in distributions(name=self.name, path=path)), None)

    @property
    def pinned(self) -> str:
        """The version that is to be installed."""
        if self.environment == "node":
            return str(json.loads((HERE / "package.json").read_text())["dependencies"][self.name])
        lines = (HERE / "requirements" / f"{self.environment}.txt").read_text().splitlines()
        return next(line.partition("==")[2] for line in lines if line.partition("==")[0] == self.name)


PACKAGES = (
    Package("openai", "openai_client.py", cells=tuple(CELLS)),
    Package("openai", "openai_client.mjs", "node", title="openai (npm)"),
    Package("litellm", "litellm_client.py"),
    Package("langchain-openai", "langchain_client.py"),
    Package("pydantic-ai-slim", "pydantic_ai_client.py"),
    Package(
        "instructor",
        "instructor_client.py",
        "openai-2",
        ("text", "stream", "picture", "named", "streamed_call", "schema"),
    ),
    Package("openai-agents", "agents_client.py", cells=tuple(CELLS)),
    Package(
        "llama-index-llms-openai-like",
        "llama_index_client.py",
        "openai-2",
        tuple(cell for cell in CHAT if cell != "schema_with_tools"),
    ),
    Package("smolagents", "smolagents_client.py"),
    Package("semantic-kernel", "semantic_kernel_client.py", cells=tuple(cell for cell in CHAT if cell != "named")),
    Package("@ai-sdk/openai-compatible", "ai_client.mjs", "node", title="ai, @ai-sdk/openai-compatible (npm)"),
    Package("llm", "llm_client.py", cells=("text", "stream", "picture", "tools", "schema", "schema_with_tools")),
    Package("guidellm", "guidellm_client.py", "guidellm", ("stream",)),
)
