"""Planning and making restores."""
