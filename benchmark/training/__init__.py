"""Carry out one run.

Imports `runs`, `evaluation`, `components` and what is above them.
"""
