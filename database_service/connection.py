"""A connection to PostgreSQL, as repositories and migrations get it."""

from typing import TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
