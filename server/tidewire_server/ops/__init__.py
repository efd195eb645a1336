"""Running the server: configuration, health, metrics, drain, administration."""
