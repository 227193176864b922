"""The contract: what the file of a method, a dataset or a backbone imports.

Imports `datafiles`, `system` and the files of the top.
"""
