"""The label of a token that nothing is learnt from."""

IGNORED = -100
"""What PyTorch's cross entropy leaves out (`ignore_index`), and with it transformers and TRL."""
