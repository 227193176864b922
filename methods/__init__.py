"""Methods, one file each: the paper's formula, and what differs from the authors' code."""
