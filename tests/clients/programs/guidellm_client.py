"""The `guidellm` package, which sends streamed chats and measures them; run by its command."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cells import COUNT, MODEL, URL, Answer, main


def stream() -> Answer:
    with tempfile.TemporaryDirectory() as directory:
        prompts, report = Path(directory, "prompts.jsonl"), Path(directory, "report.json")
        prompts.write_text((json.dumps({"prompt": COUNT}) + "\n") * 4)
        command = [
            Path(sys.executable).with_name("guidellm"), "run", "--disable-console",
            "--backend", f"kind=openai_http,target={URL.removesuffix('/v1')},model={MODEL}",
            "--profile", "kind=synchronous",
            "--constraint", "kind=max_requests,count=3",
            "--data", f"kind=json_file,path={prompts}",
            "--output", f"kind=json,path={report}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        [benchmark] = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert (len(requests["successful"]), requests["errored"]) == (3, []), requests
    first = requests["successful"][0]
    return {"text": first["output"], "pieces": first["info"]["timings"]["token_iterations"]}


main(stream=stream)
