"""What can be set from the environment."""

from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, IPvAnyAddress
from pydantic_settings import BaseSettings, SettingsConfigDict

from common.settings import HostNames

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Where to listen and what to keep; read once, at start."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    bind_address: IPvAnyAddress = IPv4Address("127.0.0.1")
    """Address both servers listen on. There is no login: who reaches it reads every mail."""

    allowed_hosts: HostNames = ""
    """Names, separated by commas, of the page besides localhost and addresses; * allows all."""

    mailcatcher_smtp_port: Port = 21025
    """Where mails come in."""

    mailcatcher_web_port: Port = 21080
    """Where the page and the API answer."""

    mailcatcher_dir: Path = Path("mails")
    """Folder of the ``.eml`` files, made if missing."""

    mailcatcher_keep: Annotated[int, Field(ge=1)] = 100_000
    """Mails kept; the oldest go first."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """INFO is one line per mail."""
