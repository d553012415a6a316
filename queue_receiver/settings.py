"""What the receiver can be told."""

from pydantic import Field

from common.settings import ConsumerSettings, DatabaseServiceSettings, Port, ServiceSettings


class Settings(ConsumerSettings, DatabaseServiceSettings, ServiceSettings):
    """The receiver's settings."""

    port: Port = 8081

    ledger_interval_seconds: float = Field(default=10.0, ge=0, le=86_400)
    """Seconds between two readings of the ledger, for metrics and health; 0: only when asked."""

    ledger_lost_after_seconds: float = Field(default=600.0, ge=0, le=31_536_000)
    """Seconds after which a registration that is in no queue and not stored is called lost."""
