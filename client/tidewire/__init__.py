"""Messaging for microservices: events, queries, state, control, heartbeats and checkpoints."""
