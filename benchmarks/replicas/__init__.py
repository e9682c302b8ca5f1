"""Measures what replicas cost, and what their clients notice of the loss of one."""
