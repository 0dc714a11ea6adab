"""Adapters as they lie on disk, read from their config and the header of their tensors. Imports no torch."""
