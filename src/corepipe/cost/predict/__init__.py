"""Predicts what layers cost from what they compute: fitted once per machine, then no network need be run."""
