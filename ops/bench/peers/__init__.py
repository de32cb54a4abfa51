"""What people would pick instead, at the same work in the same run: `python -m ops.bench.peers`."""
