"""Qdrant nodes and clusters over REST."""
