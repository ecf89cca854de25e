"""Rows in, rows out: mixing, cleaning, decontamination, and training rows as token ids."""
