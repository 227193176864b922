"""What a run is and what it leaves: specification, record, checkpoint, lease.

Imports `core` and what is above it.
"""
