from pathlib import Path

from tools.launcher.environment import REQUIREMENTS, pip_configuration, uv_settings
from tools.launcher.lock import LOCKS


def test_uv_is_told_what_pip_is_configured_with() -> None:
    pip = {
        "index-url": "https://mirror.example.org/simple",
        "extra-index-url": "https://a.example.org/simple\nhttps://b.example.org/simple",
        "find-links": "/srv/wheels /srv/more",
        "cert": "/etc/ssl/own.pem",
        "timeout": "60",
    }

    assert uv_settings(pip) == {
        "UV_DEFAULT_INDEX": "https://mirror.example.org/simple",
        "UV_INDEX": "https://a.example.org/simple https://b.example.org/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/srv/wheels,/srv/more",
        "SSL_CERT_FILE": "/etc/ssl/own.pem",
    }


def test_uv_is_told_nothing_where_pip_is_not_configured() -> None:
    assert uv_settings({}) == {}


def test_pips_variables_win_over_its_files(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://global\n[install]\nfind-links = /wheels\n")

    found = pip_configuration({"PIP_CONFIG_FILE": str(file), "PIP_INDEX_URL": "https://variable"})

    assert found["index-url"] == "https://variable"
    assert found["find-links"] == "/wheels"


def test_lock_files_are_hashed_and_name_no_index_and_no_host() -> None:
    locks = sorted(REQUIREMENTS.glob("*.lock"))

    assert {lock.stem for lock in locks} == set(LOCKS)
    for lock in locks:
        text = lock.read_text()
        assert "://" not in text, lock.name
        assert "--index" not in text, lock.name
        assert text.count("==") <= text.count("--hash=sha256:"), lock.name
