"""The same job with FastAPI, FastStream and SQLAlchemy, as their documentation shows it.

In: ``POST /register``. Out: a row in PostgreSQL and a mail. Quorum queues, persistent and
confirmed messages, acknowledged when done: what UserStream promises of them, this does too.
It keeps no delivery records, has no retry steps and no idempotency beyond the unique address.

* https://faststream.ag2.ai/latest/getting-started/integrations/fastapi/
* https://faststream.ag2.ai/latest/rabbit/publishing/
* https://docs.sqlalchemy.org/en/20/orm/extensions/asyncio.html
* https://aiosmtplib.readthedocs.io/en/stable/usage.html
"""
