"""Which units or weights may go: the criteria, how much of each layer, and the cut."""
