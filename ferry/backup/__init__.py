"""Planning and making backups."""
