"""Opening archives and fixing their content."""
