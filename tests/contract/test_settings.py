"""Every setting explains itself, and what the examples show can be used as it stands."""

from io import StringIO
from typing import Any

import pytest
from dotenv import dotenv_values

from common.settings import example
from tests.services import REQUIRED, SERVICES, settings_class

EVERY_SERVICE = pytest.mark.parametrize("service", SERVICES)


@EVERY_SERVICE
def test_every_setting_is_explained(service: str) -> None:
    for name, field in settings_class(service).model_fields.items():
        assert field.description, f"{service}: {name.upper()} has no docstring"


@EVERY_SERVICE
def test_only_what_is_required_has_to_be_filled_in(service: str) -> None:
    filled_in = {
        line for line in example(settings_class(service)).splitlines() if line[:1].isalpha()
    }
    assert filled_in == {f"{name.upper()}=" for name in REQUIRED[service]}


@EVERY_SERVICE
def test_the_examples_defaults_mean_what_the_service_does_without_them(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_class(service)
    for name in settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(f"{name.upper()}_FILE", raising=False)
    lines = example(settings).splitlines()
    uncommented = "\n".join(line.removeprefix("#") for line in lines if not line.startswith("# "))

    shown: dict[str, Any] = {
        name.lower(): value for name, value in dotenv_values(stream=StringIO(uncommented)).items()
    }
    given = {name: value for name, value in shown.items() if value not in ("", None)}

    assert set(shown) == set(settings.model_fields)
    assert settings(**{**given, **REQUIRED[service]}) == settings(**REQUIRED[service])
