"""Tables, pages and traces for people."""
