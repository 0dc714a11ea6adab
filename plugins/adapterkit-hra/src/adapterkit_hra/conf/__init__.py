"""Presets of this plugin, found by adapterkit through the entry point group adapterkit.conf."""
