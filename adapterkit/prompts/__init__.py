"""Prompt methods: virtual tokens around a whole model. `around` makes and calls them; the others say where they go."""
