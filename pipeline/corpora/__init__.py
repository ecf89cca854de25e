"""Text that is generated: corpora for pre-training small models, from a seed."""
