"""Implementations of the larger tools, in modules of the same names, imported after parsing."""
