"""The machine: devices, threads, signals, and the defects of other people's software that are worked around here.

Imports the files of the top only.
"""
