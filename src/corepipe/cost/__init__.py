"""The cost table: seconds of every layer on every core config, and the ways to fill it."""
