import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from report_generator.csv_style import CsvStyle, RecordCounter

FIELDS = st.text(alphabet=st.sampled_from("ab,;\"'\r\n ü"), max_size=8)
ROWS = st.lists(st.lists(FIELDS, min_size=2, max_size=3), min_size=1, max_size=8)


def counted(content: bytes, style: CsvStyle, cut: int = 1) -> int:
    counter = RecordCounter(style)
    for start in range(0, len(content), cut):
        counter.feed(content[start : start + cut])
    return counter.records


@given(rows=ROWS, cut=st.integers(1, 7), quote=st.sampled_from("\"'"), header=st.booleans())
def test_records_are_counted_as_a_parser_does_wherever_the_blocks_end(
    rows: list[list[str]], cut: int, quote: str, *, header: bool
) -> None:
    text = io.StringIO()
    csv.writer(text, quotechar=quote).writerows(rows)
    style = CsvStyle(quote=quote, header=header)

    records = counted(text.getvalue().encode(), style, cut)

    parsed = list(csv.reader(io.StringIO(text.getvalue(), newline=""), quotechar=quote))
    assert records == len(parsed) - header


def test_a_line_break_inside_a_field_ends_no_record() -> None:
    content = b'ID,Name\r\n1,"Ada\r\nLove""lace"\r\n2,Grace\r\n'

    assert counted(content, CsvStyle(), cut=5) == 2


def test_the_last_record_needs_no_line_break() -> None:
    assert counted(b"1,Ada\n2,Grace", CsvStyle(header=False)) == 2


def test_a_header_alone_is_no_record() -> None:
    assert counted(b"ID,Name\r\n", CsvStyle()) == 0
    assert counted(b"", CsvStyle()) == 0
