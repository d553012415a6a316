"""Settings of the frontend."""

from pydantic import Field, SecretStr

from common.settings import (
    BrokerSettings,
    DatabaseServiceSettings,
    Networks,
    Origins,
    Port,
    PublicUrl,
    ServiceSettings,
)


class Settings(BrokerSettings, DatabaseServiceSettings, ServiceSettings):
    """The frontend's settings."""

    port: Port = 3000

    public_url: PublicUrl | None = None
    """Where people reach it, as in links; without it, http://localhost with the port. A host of its
    own: without a path."""

    cors_origins: Origins = ""
    """Origins, separated by commas, whose pages may use the API and the live journey from a
    browser, such as https://www.example.org."""

    trusted_proxies: Networks = ""
    """Addresses or networks, separated by commas, of proxies whose X-Forwarded-For names the
    client; without it a proxy counts as one client, and has room for 100 live pages."""

    registration_id_secret: SecretStr = Field(min_length=32)
    """Key from which registration ids are made; the same on all instances, and kept."""

    canary_seconds: int = Field(default=60, ge=0, le=86_400)
    """Seconds between canaries, whose outcome shows in /health; 0 sends none."""

    @property
    def base_url(self) -> str:
        """Where people reach it, without a slash at the end."""
        return str(self.public_url or f"http://localhost:{self.port}").rstrip("/")
