"""`python -m fleetfit`: the same as the `fleetfit` command."""

from __future__ import annotations

from fleetfit.cli import main

if __name__ == "__main__":
    main()
