"""Files on disk: written durably, read in any of the usual formats, locked, and found on the hub."""
