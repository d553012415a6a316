"""The settings of database_service."""

import ssl
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from common.settings import ServiceSettings

SslMode = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]
"""How the connection to PostgreSQL is encrypted; libpq's names."""

_BOOLEANS = {"true": "require", "1": "require", "false": "disable", "0": "disable"}


def _from_boolean(value: object) -> object:
    return _BOOLEANS.get(value.strip().lower(), value) if isinstance(value, str) else value


class Settings(ServiceSettings):
    """Settings of database_service."""

    port: int = Field(default=8083, ge=0, le=65535)
    """TCP port to listen on."""

    db_host: str = "127.0.0.1"
    """Host of PostgreSQL."""

    db_port: int = Field(default=5432, ge=1, le=65535)
    """Port of PostgreSQL."""

    db_name: str = "userstream"
    """Database; its tables are made by the service itself."""

    db_user: str = "userstream"
    """Role that owns the tables."""

    db_password: SecretStr = SecretStr("")
    """Password of the role; or its file in DB_PASSWORD_FILE."""

    db_pool_min: int = Field(default=2, ge=0)
    """Connections opened at start."""

    db_pool_max: int = Field(default=10, ge=2)
    """Connections at most; reports may use half of them. Measured: 3 to 4 are busy in a burst."""

    db_ssl: Annotated[SslMode, BeforeValidator(_from_boolean)] = "prefer"
    """disable, prefer, require, verify-ca or verify-full; true means require."""

    db_ssl_ca: Path | None = None
    """Certificate authority to verify against; without it, the system's."""

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        if self.db_pool_min > self.db_pool_max:
            raise ValueError("DB_POOL_MIN is larger than DB_POOL_MAX.")
        return self

    def unused(self) -> dict[str, str]:
        """Fields that another setting makes meaningless, and why."""
        if self.db_ssl_ca is not None and not self.db_ssl.startswith("verify"):
            return {"db_ssl_ca": f"DB_SSL is {self.db_ssl}, so no certificate is checked"}
        return {}

    @property
    def ssl(self) -> ssl.SSLContext | Literal["disable", "prefer", "require"]:
        """The mode as asyncpg takes it."""
        if self.db_ssl in ("disable", "prefer", "require"):
            return self.db_ssl
        context = ssl.create_default_context(cafile=self.db_ssl_ca)
        context.check_hostname = self.db_ssl == "verify-full"
        return context
