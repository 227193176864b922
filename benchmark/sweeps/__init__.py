"""Many runs: what they are, who carries them out, what is left of them.

Imports `results`, `training` and what is above them.
"""
