"""Files that programs of others read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gcvideo.files import write_json


def test_json_is_strict_even_of_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"top1": math.nan, "rows": [1.5, (math.inf, {"low": -math.inf})], "count": 2, "name": "NaN"})
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found == {"top1": None, "rows": [1.5, [None, {"low": None}]], "count": 2, "name": "NaN"}
