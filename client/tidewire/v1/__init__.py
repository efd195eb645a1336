"""Generated from proto/tidewire/v1 by proto/generate.py: never edit."""
