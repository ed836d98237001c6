"""The form in which a model is compressed: a plain graph of ordinary layers."""
