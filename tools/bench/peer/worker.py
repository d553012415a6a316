"""Stores registrations and asks for mails: ``faststream run tools.bench.peer.worker:app``."""

import os

from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker
from sqlalchemy.dialects.postgresql import insert

from tools.bench.peer.messages import Registration, emails, registrations
from tools.bench.peer.models import Base, Session, User, engine

broker = RabbitBroker(
    os.environ["AMQP_URL"],
    default_channel=Channel(prefetch_count=int(os.environ["PREFETCH"])),
    logger=None,
)
app = FastStream(broker, logger=None)


@app.on_startup
async def create_tables() -> None:
    """Create what is missing."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


@broker.subscriber(registrations)
async def store(registration: Registration) -> None:
    """Insert the row, commit, and hand on."""
    async with Session() as session:
        row = insert(User).values(**registration.model_dump())
        await session.execute(row.on_conflict_do_nothing(index_elements=["email"]))
        await session.commit()
    await broker.publish(registration, queue=emails, persist=True)
