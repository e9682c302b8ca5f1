"""Replicas: which process may send the turns of a conversation upstream.

What belongs here: leases and epochs, the questions to the store that they depend on, and what a
replica may do about a turn whose owner it cannot reach. ``store`` has the questions and answers,
``lease`` the rules for this replica's own lease, ``claims`` those for one conversation,
``holdings`` puts them together. Nothing here reads a request or a response.

Public is the module ``store``, for drivers and for stores; the others are internal.
"""
