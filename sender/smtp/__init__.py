"""An SMTP client for one job: many small mails, quickly, and never a doubt kept to itself.

Start with ``connection``. ``docs/adr/0004-smtp-client.md`` says why it is our own.
"""
