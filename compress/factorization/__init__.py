"""Layers as chains of smaller ones: what each split loses, and the ranks."""
