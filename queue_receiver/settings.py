"""What the receiver can be told."""

from common.settings import ConsumerSettings, DatabaseServiceSettings, ServiceSettings


class Settings(ConsumerSettings, DatabaseServiceSettings, ServiceSettings):
    """The receiver's settings."""

    port: int = 8081
