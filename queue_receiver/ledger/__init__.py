"""The ledger: what was accepted, reconciled by id with what became of it."""
