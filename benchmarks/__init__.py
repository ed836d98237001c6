"""One command for each claim: `python -m benchmarks.NAME [--quick] [--json]`; results lie in `benchmarks/results/`."""
