"""`python -m pipeline` is the command `zero2r1`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
