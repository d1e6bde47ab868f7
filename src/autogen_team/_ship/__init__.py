"""Delivery of journals to their stores, from the job or, after its death, from another process."""
