"""The tidewire server: services, engine and operations behind every wire."""
