"""An SMTP client for many small mails, which reports what it cannot know.

Start with ``connection``. ``docs/adr/0004-smtp-client.md`` says why it is our own.
"""
