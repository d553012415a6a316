"""How the CSV is written, and how its records are counted without parsing it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvStyle:
    """What the settings say about the CSV."""

    delimiter: str = ","
    quote: str = '"'
    header: bool = True


class RecordCounter:
    """Counts the records of a CSV that passes by in blocks.

    A line break inside a quoted field ends no record. Quotes inside such a field are doubled
    (RFC 4180, 2.7), so an odd number of quotes so far always means: inside a field. Splitting
    at the quotes runs in C, where a parser would cost more than writing the file.
    """

    def __init__(self, style: CsvStyle) -> None:
        self._quote = style.quote.encode()
        self._header = style.header
        self._ends = 0
        self._inside_field = False
        self._at_end_of_record = True

    def feed(self, block: bytes) -> None:
        """Count the next bytes; a block may end anywhere."""
        if not block:
            return
        parts = block.split(self._quote)
        outside = parts[1 if self._inside_field else 0 :: 2]
        self._ends += sum(part.count(b"\n") for part in outside)
        self._inside_field ^= len(parts) % 2 == 0
        self._at_end_of_record = not self._inside_field and block.endswith(b"\n")

    @property
    def records(self) -> int:
        """Records so far, without the header; the last one needs no line break."""
        lines = self._ends + (0 if self._at_end_of_record else 1)
        return max(0, lines - (1 if self._header else 0))
