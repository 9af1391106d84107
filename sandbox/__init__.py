"""Real parts on this machine: Qdrant clusters, an S3 server, Prefect, demo data, and ways to break them."""
