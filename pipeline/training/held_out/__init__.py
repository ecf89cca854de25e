"""Held-out scores while a stage trains: the fields `watch`, `keep` and `stop`."""
