"""What a recipe will take, before it starts: `zero2r1 plan --cost`, and `zero2r1 cost` for a whole pre-training.

sizes.py       which model a stage works on, and its shape, without loading anything
work.py        a stage of a recipe as numbers: tokens, steps, passes, engines
estimate.py    those numbers on a GPU: FLOPs, memory, seconds, money, and what would make it fit
tables.py      what is printed
probe.py       a minute of measuring on the machine at hand
"""
