"""HRA for adapterkit."""

from adapterkit_hra.config import HraConfig

__all__ = ["HraConfig"]
