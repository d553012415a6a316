"""The commands that ask a running stack: dead letters, mails, the ledger."""
