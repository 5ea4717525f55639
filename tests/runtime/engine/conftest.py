from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from runtime.block_manager import BlockManager


def shared_segments() -> set[str]:
    return (
        {name for name in os.listdir("/dev/shm") if name.startswith("moeplan-")}
        if os.path.isdir("/dev/shm")
        else set()
    )


@pytest.fixture(autouse=True)
def nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: its block managers are idle and consistent, its shared memory is gone."""
    managers: list[BlockManager] = []
    construct = BlockManager.__init__

    def recording(self: BlockManager, *args: object, **kwargs: object) -> None:
        construct(self, *args, **kwargs)  # type: ignore[arg-type]
        managers.append(self)

    monkeypatch.setattr(BlockManager, "__init__", recording)
    own = f"moeplan-{os.getpid()}-"
    yield
    for manager in managers:
        manager.check_idle()
    assert not {name for name in shared_segments() if name.startswith(own)}
