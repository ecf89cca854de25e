"""The commands of `zero2r1`, one module each, and what they share. `pipeline.cli` lists them."""
