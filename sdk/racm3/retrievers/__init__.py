"""Retrievers: documents and queries to unit vectors of one space."""
