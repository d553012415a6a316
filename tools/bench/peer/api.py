"""Takes registrations: ``uvicorn tools.bench.peer.api:app``."""

import os

from fastapi import FastAPI
from faststream.rabbit.fastapi import RabbitRouter
from pydantic import BaseModel, EmailStr, Field

from tools.bench.peer.messages import registrations


class Submitted(BaseModel):
    """What people send."""

    name: str = Field(min_length=1, max_length=100)
    surname: str = Field(min_length=1, max_length=100)
    email: EmailStr


router = RabbitRouter(os.environ["AMQP_URL"])
app = FastAPI()


@router.post("/register", status_code=202)
async def register(submitted: Submitted) -> dict[str, str]:
    """Answer when the broker has confirmed it."""
    await router.broker.publish(submitted, queue=registrations, persist=True)
    return {"status": "accepted"}


app.include_router(router)
