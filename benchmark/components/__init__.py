"""Base classes and geometry that several methods share.

Imports `core` and what is above it.
"""
