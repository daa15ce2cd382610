"""Runs Python that nobody has read: see ``sandbox.Sandbox``. The modules beside it use the standard library only."""
