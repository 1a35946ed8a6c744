"""Checkpoints: reading untrusted files without running their code, and atomic writing."""

from vild.checkpoint.checkpointer import AtomicCheckpointer, load_weights

__all__ = ["AtomicCheckpointer", "load_weights"]
