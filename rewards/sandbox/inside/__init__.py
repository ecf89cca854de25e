"""What runs inside the sandbox: standard library only, importable on its own.

These files are bound read-only into the sandbox, where nothing else of this project exists. `values` also runs
outside, where it decodes what comes back.
"""
