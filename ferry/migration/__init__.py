"""Migrations: points streamed or built from any source into a collection, with exact resume and a proven end."""
