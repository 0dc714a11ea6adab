"""How adapters get into a model, what is done with them there, and how they get out again."""
