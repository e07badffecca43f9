"""`make fuzz`: fuzz every target for a time; exit code 1 if there is a finding. Findings are saved as files."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from tests.fuzz.targets import TARGETS
from tests.fuzz.trial import run, run_one


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="make fuzz ARGS=…", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0, help="for all targets together  [1]")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=time.time_ns() // 10**9, help="[the time]")
    parser.add_argument("--max-size", type=int, default=1 << 20, help="bytes of an input  [1 MiB]")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="directory for their inputs")
    parser.add_argument("--replay", type=Path, help="run one target on the input in a file")
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("GLM_")]:
        del os.environ[name]
    if arguments.replay:
        reason = run_one(TARGETS[arguments.targets[0]], arguments.replay.read_bytes())
        print(reason or "no finding")
        return 1 if reason else 0
    found = 0
    for name in arguments.targets:
        seconds = arguments.hours * 3600 / len(arguments.targets)
        report = run(TARGETS[name], seed=arguments.seed, seconds=seconds, max_size=arguments.max_size)
        print(
            f"{name:12} seed {arguments.seed}, {report.inputs} inputs, {len(report.findings)} findings, "
            f"at most {report.slowest:.2f} s and {report.largest:.0f} MiB for an input",
            flush=True,
        )
        for finding in report.findings:
            arguments.findings.mkdir(exist_ok=True)
            path = arguments.findings / f"{name}-{finding.seed}-{finding.number}"
            path.write_bytes(finding.data)
            path.with_suffix(".reason").write_text(finding.reason)
            print(f"  {path}: {finding.reason.strip().splitlines()[-1][:200]}", flush=True)
        found += len(report.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
