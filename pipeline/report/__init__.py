"""A run as one self-contained page, and as text; the comparison of several runs."""
