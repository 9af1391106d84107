"""Putting chosen points of a backup back into a live collection, or into a new one."""
