"""What of a model a config means: modules, and what a module has beside its weight."""
