"""Generated from proto/eventflux/transport by proto/generate.py: never edit."""
