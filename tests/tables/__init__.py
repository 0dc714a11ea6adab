"""The tables of ``docs/methods.md``, and what they are made of. ``python -m tests.tables`` writes them anew."""
