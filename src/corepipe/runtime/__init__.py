"""Workers, the shared-memory slots between them, and the stream that a user feeds and reads."""
