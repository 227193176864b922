"""Metrics of a trained model.

Imports `components`, `core` and what is above them.
"""
