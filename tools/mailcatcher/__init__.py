"""A mail server for development that keeps every mail and delivers none.

In: SMTP.
Out: a page to read the mails, and Mailpit's JSON API, so that the same tests run against
either of them.
"""
