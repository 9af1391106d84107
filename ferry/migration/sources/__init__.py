"""Where points can come from, one module a vendor, all of the same shape (`ferry.migration.source`)."""
