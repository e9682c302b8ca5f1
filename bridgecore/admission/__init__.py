"""Admission: limits and placement, as pure functions over values. No locks, no queues."""
