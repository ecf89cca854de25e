"""What is wrong with a gold answer of code."""

from __future__ import annotations


class GoldError(ValueError):
    """A gold answer that describes no test."""


class UnsafeError(GoldError):
    """Tests that test nothing, or that cannot be kept from what they test."""
