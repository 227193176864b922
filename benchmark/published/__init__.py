"""Numbers that others published, and our verdict on them.

Imports `sweeps`, `results` and what is above them.
"""
