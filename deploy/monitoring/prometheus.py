"""A Prometheus that scrapes one service and evaluates the rules of this directory."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from deploy.errors import GlmError, Refused
from deploy.systemd.process import end, start_daemon
from deploy.systemd.sandbox import reserve_port

__all__ = ["RULES", "Prometheus", "require"]

RULES = Path(__file__).with_name("rules")
_INSTALL = "Debian: apt-get install --no-install-recommends prometheus"
_TIMEOUT = 30.0  # seconds for Prometheus to start, and to stop


def require() -> None:
    """Look for Prometheus; raises Refused with how to install it if it is missing."""
    if shutil.which("prometheus") is None:
        raise Refused("prometheus is not on PATH", hint=_INSTALL)


class Prometheus:
    """A context manager. Prometheus runs, with its files in `directory`, until the end of the block.

    `target`: the address `HOST:PORT` of the service. `interval`: seconds between two scrapes, and between two
    evaluations of the `*.yml` files in `rules`. It ends with this process; the caller removes `directory`.
    """

    def __init__(self, target: str, directory: Path, *, interval: float = 2.0, rules: Path = RULES) -> None:
        self._directory = directory
        self._log = directory / "prometheus.log"
        every = f"{round(interval * 1000)}ms"
        self._configuration = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(rules / "*.yml")],
            "scrape_configs": [{"job_name": "glm", "static_configs": [{"targets": [target]}]}],
        }

    def __enter__(self) -> Prometheus:
        require()
        self._directory.mkdir(exist_ok=True)
        configuration = self._directory / "prometheus.yml"
        configuration.write_text(json.dumps(self._configuration))  # JSON is YAML
        self._port = reserve_port()
        self.address = f"127.0.0.1:{self._port.getsockname()[1]}"
        argv = [
            *("setpriv", "--pdeathsig=TERM", "prometheus", f"--config.file={configuration}"),
            *(f"--storage.tsdb.path={self._directory / 'data'}", f"--web.listen-address={self.address}"),
        ]
        try:
            self.process = start_daemon(argv, self._log)
            self._await_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = getattr(self, "process", None)
        if process is not None:
            end(process, _TIMEOUT)
        self._port.close()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the present samples of an expression: dictionaries with `metric` and `value`; raises GlmError."""
        result: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return result

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire; raises GlmError."""
        return {one["labels"]["alertname"] for one in self._get("alerts")["alerts"] if one["state"] == "firing"}

    def _get(self, path: str, **parameters: str) -> dict[str, Any]:
        try:
            url = f"http://{self.address}/api/v1/{path}"
            answer = httpx.get(url, params=parameters, timeout=_TIMEOUT, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise GlmError(f"Prometheus did not answer {path}: {error}", hint=f"its log: {self._log}") from error
        data: dict[str, Any] = answer.json()["data"]
        return data

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _TIMEOUT
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://{self.address}/-/ready", timeout=5, trust_env=False).is_success:
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                last = self._log.read_text(errors="replace").strip().splitlines()
                raise GlmError(f"Prometheus did not start: {last[-1] if last else 'no message'}")
            time.sleep(0.1)
