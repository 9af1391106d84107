"""Deleting backups that no rule keeps, and what nobody needs any more."""
