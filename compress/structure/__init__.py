"""The structure of a layered model: which neurons and channels belong together, and how to take some of them out."""
