"""Networks, one file each.

Imports `core` and what is above it.
"""
