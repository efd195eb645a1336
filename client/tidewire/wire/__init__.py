"""What both sides of a wire share, without I/O: bytes and time enter, frames and actions leave."""
