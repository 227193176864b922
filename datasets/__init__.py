"""Datasets, one file each: where the data come from and how the problem is made of them."""
