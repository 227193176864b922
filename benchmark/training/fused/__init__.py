"""Carry out many runs as one.

Imports `training` and what `training` may import.
"""
