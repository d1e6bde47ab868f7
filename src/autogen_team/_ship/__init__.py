"""Delivery of journals to their stores, by the job or, after its death, by another process."""
