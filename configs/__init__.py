"""Configuration files: `recipes/<dataset>.yaml`."""
