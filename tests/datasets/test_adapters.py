"""Datasets of other packages: made on the spot, and read as their own package reads them."""
