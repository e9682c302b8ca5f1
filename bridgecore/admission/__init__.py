"""HOW MUCH, and where: which conversation a turn goes to. Values, not locks."""
