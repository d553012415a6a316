"""What is generated is generated from what is there."""

import json
from pathlib import Path

from common.contracts.topology import definitions

FILE = Path(__file__).parents[2] / "rabbitmq" / "definitions.json"


def test_the_brokers_definitions_are_the_topology() -> None:
    assert json.loads(FILE.read_text("utf-8")) == definitions(), (
        "Write it anew: python -m common.contracts.topology > rabbitmq/definitions.json"
    )
