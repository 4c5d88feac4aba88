"""Trains the small diffusion language models that ship with the fork."""
