"""fleetfit fits one trained model to every device of a fleet."""

__version__ = "0.1.0"
