"""The machines of a run: where its Ray cluster comes from, and who sits where on it."""
