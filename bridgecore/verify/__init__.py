"""Proves properties of sessions and bridges, by exploring every state that they can reach.

What belongs here: the explorers with their models and bounds, the properties, the mutants of rules
and tables, scenarios, and replay of decision logs. ``bridgecore verify`` runs it. Public are
``monitor`` and ``properties``; the other modules are internal.
"""
