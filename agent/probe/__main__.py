"""`python -m fleetfit.agent.probe`: print a serialized DeviceSnapshot to standard output."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from fleetfit.core.children import keep_stdout, limit_self


def main() -> None:
    """Probe and print."""
    limit_self()
    parser = argparse.ArgumentParser(prog="python -m fleetfit.agent.probe")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--root", type=Path, default=Path("/"), help="read /proc and /sys below this folder")
    parser.add_argument("--disk", type=Path, help="a folder on the disk that the agent uses")
    parser.add_argument(
        "--apart", type=Path, help="ask each runtime in a process of its own, which answers into this folder"
    )
    parser.add_argument("--limit-s", type=float, default=60.0, help="for each of these")
    options = parser.parse_args()
    answers = keep_stdout()
    from fleetfit.agent.probe.files import Tree
    from fleetfit.agent.probe.runtimes import ask_apart
    from fleetfit.agent.probe.snapshot import take_snapshot

    snapshot = take_snapshot(
        Tree(options.root),
        threads=options.threads,
        emulated=options.emulated,
        disk=options.disk,
        runtimes=asyncio.run(ask_apart(options.apart, options.limit_s)) if options.apart else None,
    )
    answers.write(snapshot.SerializeToString())
    answers.flush()
    # Some libraries crash or hang at the end of a process.
    os._exit(0)


if __name__ == "__main__":
    main()
