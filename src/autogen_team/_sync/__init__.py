"""Copies of runs between stores: from offline stores, folders and databases to where they belong."""
