"""The form people fill in, the API behind it, and the page that shows how far it has come.

In: HTTP from browsers and programs. Out: ``user.registration``; asks database_service.
"""
