"""How models and data get in: checked before they are loaded, taken apart, proven equal."""
