"""Stand-in for the compiled package ``sgl_kernel``; its folder leads an engine's import path on CPU."""
