"""Settings of the report generator."""

from pathlib import Path

from pydantic import Field

from common.contracts.reports import Delimiter, QuoteCharacter
from common.settings import (
    ConsumerSettings,
    DatabaseServiceSettings,
    Port,
    PublicUrl,
    ServiceSettings,
)
from report_generator.csv_style import CsvStyle


class Settings(ServiceSettings, ConsumerSettings, DatabaseServiceSettings):
    """The report generator's settings."""

    port: Port = 8084

    prefetch: int = Field(default=2, ge=1, le=100)
    """Reports made at once. Each holds a connection of database_service for as long as it runs."""

    public_url: PublicUrl | None = None
    """Base of the links in mails; without it, this host and PORT. A name of its own: without a
    path."""

    report_output_dir: Path = Path("/reports")
    """Directory of the files; the same one (a shared volume) for all instances."""

    csv_delimiter: Delimiter = ","
    """Between the fields: a comma, a semicolon, a tab or a vertical bar."""

    csv_quote_char: QuoteCharacter = '"'
    """Around fields that need it: a double or a single quote."""

    include_header: bool = True
    """Whether the first line names the columns."""

    @property
    def style(self) -> CsvStyle:
        """How the CSV is written."""
        return CsvStyle(
            delimiter=self.csv_delimiter, quote=self.csv_quote_char, header=self.include_header
        )

    @property
    def links_from(self) -> str:
        """Where links begin, without a slash at the end."""
        return str(self.public_url or f"http://127.0.0.1:{self.port}").rstrip("/")
