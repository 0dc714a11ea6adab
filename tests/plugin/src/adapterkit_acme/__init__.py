"""A third party's method and task for adapterkit."""
