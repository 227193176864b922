"""Official releases: how they are described, found, downloaded, checked and cached.

Imports `system` and the files of the top.
"""
