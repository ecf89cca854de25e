"""Data, not code: whole jobs, one YAML file each."""
