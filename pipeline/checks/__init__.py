"""What is checked before anything runs: a whole recipe, and what it needs of the machine."""
