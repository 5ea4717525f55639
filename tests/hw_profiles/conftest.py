"""A part file of one's own to spoil line by line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

OWN_PART = """\
name = "mine"
display_name = "My card"
vendor = "other"
generation = "homemade"
status = "shipping"
aliases = ["my_card"]
memory_kind = "HBM3"
memory_capacity = { value = 96, unit = "GiB", source = "its label", accessed = 2026-11-01 }
memory_bandwidth = { value = 4.0, unit = "TB/s", source = "its label", accessed = 2026-11-01 }

[matrix]
bf16 = { value = 500, unit = "TFLOP/s", source = "its label", accessed = 2026-11-01 }

[scale_up]
link = "cable"
domain = { value = 4, unit = "accelerators", source = "its label", accessed = 2026-11-01 }
bandwidth = { value = 100, unit = "GB/s", source = "its label", accessed = 2026-11-01 }

[prices]
rental_3yr = { value = 1.25, unit = "USD/h", source = "our contract", accessed = 2026-11-02 }
"""


@pytest.fixture
def own_part(tmp_path: Path) -> Callable[..., Path]:
    """Writes the file with `old` replaced by `new` and gives its path."""

    def write(old: str = "", new: str = "") -> Path:
        assert old in OWN_PART
        path = tmp_path / "mine.toml"
        path.write_text(OWN_PART.replace(old, new, 1), encoding="utf-8")
        return path

    return write
