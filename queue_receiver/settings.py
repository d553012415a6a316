"""What the receiver can be told."""

from common.settings import ConsumerSettings, DatabaseServiceSettings, Port, ServiceSettings


class Settings(ConsumerSettings, DatabaseServiceSettings, ServiceSettings):
    """The receiver's settings."""

    port: Port = 8081
