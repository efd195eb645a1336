"""Engines: where streams, state and checkpoints live."""
