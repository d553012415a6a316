"""The message, and its queues."""

from faststream.rabbit import QueueType, RabbitQueue
from pydantic import BaseModel


class Registration(BaseModel):
    """A person who wants to be registered, validated before it was published."""

    name: str
    surname: str
    email: str


registrations = RabbitQueue("registrations", queue_type=QueueType.QUORUM, durable=True)
emails = RabbitQueue("emails", queue_type=QueueType.QUORUM, durable=True)
