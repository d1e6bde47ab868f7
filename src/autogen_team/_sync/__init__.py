"""Copies runs between stores: from offline stores, folders and databases to their server."""
