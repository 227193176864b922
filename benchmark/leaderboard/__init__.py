"""The leaderboard: every method on every problem, tuned alike, with fresh seeds.

Imports `sweeps`, `results`, and what these may import.
"""
