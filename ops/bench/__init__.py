"""How fast the service is beside a bare aiohttp server that does nothing: `python -m ops.bench`."""
