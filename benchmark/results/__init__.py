"""Records as tables, with statistics.

Imports `runs` and what is above it; never `training`, and never torch.
"""
