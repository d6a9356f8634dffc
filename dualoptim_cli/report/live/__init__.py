"""What moves on the screen while a run works: the panel, or plain lines."""
