"""An applied migration stays as it is: a database that has it is refused where the text differs."""

from hashlib import sha256
from pathlib import Path

SQL = Path(__file__).resolve().parents[2] / "sql"

APPLIED = {
    "0001_users_and_registrations": "be17d31301ffb99f5a06d1fb2148b694",
    "0002_notifications": "954d1edb5927c6632cc5f23988c71118",
    "0003_reports": "8b984fae28aef3afa9c21c5bb58cc3f9",
    "0004_store_registrations": "f95fdda013b2c42e3659c1564b724eaf",
    "0005_ledger": "76a3437575dac01c7d692b8a39e4714f",
    "0006_dead_letter_discards": "9df7f1dca03f6bd2113c93fd9956e475",
    "0007_resends_and_bounces": "b6cb6269cca03c3505ce085a37315150",
    "0008_store_canaries": "87a9f82c0f9d655f92e8e0c4a0d0763d",
    "0009_content_digests": "5b42a1281c9637592feb8356da3eef4a",
    "0010_ledger_incidents": "43e8bb66528515b6ea5242db70464fda",
    "0011_suppressions_with_reasons": "6d15be7da28878c27a3045f1fda3e79a",
    "0012_unpromised": "86869994bb07aa7c40f5886fc4ae2bc1",
    "0013_last_notice_and_truncated": "54cc69ec0e7c2be7321e65e27c1e8745",
}
"""Each file and the first half of its SHA-256, comments included. A new migration is a new line."""


def test_no_migration_is_edited() -> None:
    present = {path.stem: sha256(path.read_bytes()).hexdigest()[:32] for path in SQL.glob("*.sql")}

    assert present == APPLIED
