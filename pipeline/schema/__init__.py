"""The pieces of a recipe as pydantic models. Imports nothing else of `pipeline`."""
