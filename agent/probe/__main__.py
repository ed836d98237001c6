"""`python -m fleetfit.agent.probe`: print a serialized DeviceSnapshot to standard output."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fleetfit.core.children import limit_self


def main() -> None:
    """Probe and print."""
    limit_self()
    parser = argparse.ArgumentParser(prog="python -m fleetfit.agent.probe")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--root", type=Path, default=Path("/"), help="read /proc and /sys below this folder")
    options = parser.parse_args()
    from fleetfit.agent.probe.files import Tree
    from fleetfit.agent.probe.snapshot import take_snapshot

    snapshot = take_snapshot(Tree(options.root), threads=options.threads, emulated=options.emulated)
    sys.stdout.buffer.write(snapshot.SerializeToString())


if __name__ == "__main__":
    main()
