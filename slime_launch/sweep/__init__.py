"""Sweeps: several jobs from one command line, through Hydra's own sweepers and launchers."""
