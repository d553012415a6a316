"""The only door to PostgreSQL.

In: HTTP from the other services and from administrators.
Out: SQL to PostgreSQL, and nothing else.
"""
