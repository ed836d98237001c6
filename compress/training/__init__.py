"""Recovery: training on the original's outputs, and what goes with it."""
