"""Layers that mix tokens without attention: short convolutions and linear recurrences, over the pieces of a pass."""
