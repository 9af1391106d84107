"""Ferry: back up, restore and migrate Qdrant clusters, and prove that it worked."""

__version__ = "0.4.0"
