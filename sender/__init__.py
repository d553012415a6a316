"""In: mail requests (``email.notifications``) and ``POST /api/notifications/send``.

Out: mails to the mail server, and to database_service how each of them went.
"""
