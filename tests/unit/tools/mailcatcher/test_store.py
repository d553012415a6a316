from pathlib import Path

from tools.mailcatcher.headers import Headers
from tools.mailcatcher.store import MailStore

RAW = b"To: ada@example.org\r\n\r\nHello\r\n"


def opened(folder: Path, *, keep: int = 10) -> MailStore:
    store = MailStore(folder, keep=keep)
    store.open()
    return store


def add(store: MailStore, raw: bytes = RAW) -> str:
    return store.add(raw, Headers.scan(raw))


def test_mails_outlive_a_restart_in_their_order(tmp_path: Path) -> None:
    before = opened(tmp_path)
    ids = [add(before) for _ in range(3)]

    after = opened(tmp_path)

    assert after.ids() == ids[::-1]
    assert after.read(ids[0]) == RAW
    assert after.entry(ids[0]) == before.entry(ids[0])
    assert add(after) > ids[-1]


def test_what_a_crash_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "0123456789abcdef.eml.incoming").write_bytes(b"To: a")
    (tmp_path / "notes.txt").write_text("mine")

    store = opened(tmp_path)

    assert len(store) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = opened(tmp_path, keep=2)

    ids = [add(store) for _ in range(5)]

    assert store.ids() == ids[:-3:-1]
    assert sorted(path.stem for path in tmp_path.iterdir()) == ids[-2:]
    assert opened(tmp_path, keep=1).ids() == ids[-1:]


def test_deleted_mails_are_gone_at_once_and_their_files_after(tmp_path: Path) -> None:
    store = opened(tmp_path)
    kept, deleted = add(store), add(store)
    store.mark_read(deleted)

    gone = store.delete([deleted, "unknown"])

    assert gone == [deleted]
    assert store.ids() == [kept]
    assert (store.entry(deleted), store.read(deleted), store.unread) == (None, None, 1)
    store.remove_files(gone)
    assert [path.stem for path in tmp_path.iterdir()] == [kept]


def test_a_mail_whose_file_someone_removed_is_no_error(tmp_path: Path) -> None:
    mail_id = add(opened(tmp_path))
    store = opened(tmp_path)
    (tmp_path / f"{mail_id}.eml").unlink()

    assert store.entry(mail_id) is None
    assert store.read(mail_id) is None


async def test_waiting_ends_with_the_next_change(tmp_path: Path) -> None:
    store = opened(tmp_path)
    seen = store.version

    add(store)

    assert await store.wait_beyond(seen) == store.version > seen
