"""Each kind of messages as the demo's driver uses it, and how what came out is verified."""
