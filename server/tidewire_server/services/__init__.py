"""The services, written once for every wire."""
