"""Division of what is scarce among clients. Begin with `client.py`."""
