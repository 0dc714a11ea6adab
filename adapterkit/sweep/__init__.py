"""Sweeps: checked whole before the first trial, compared after the last. Knows no Hydra."""
