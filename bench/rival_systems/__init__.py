"""What `bench/rivals.py` measures, each system in processes of its own; see docs/bench.md."""
