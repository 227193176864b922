"""A look into trained networks.

Imports `training` and what is above it.
"""
