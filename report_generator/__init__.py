"""Makes reports of users as CSV files, to be downloaded.

In: ``POST /api/reports/…`` and ``report.requests``. Out: ``report.requests``, files, and
``email.notifications`` where a recipient is named.
"""
