"""Figures, and the page about many runs.

Imports `analysis`, `results` and what is above them.
"""
