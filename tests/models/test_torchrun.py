"""Variables of the environment that torchrun sets, and what else may have set them."""

import pytest

from reinforce_lite.errors import UsageError
from reinforce_lite.models.torchrun import check_environment, world_size

COMPLETE = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("value", ["abc", "", "0", "-1", "1.5", "²"])
def test_a_world_size_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert world_size() == 1
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(UsageError, match="variable WORLD_SIZE") as caught:
        world_size()
    assert "torchrun" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", None),
        ("RANK", "x"),
        ("RANK", "2"),
        ("MASTER_ADDR", None),
        ("MASTER_PORT", None),
        ("MASTER_PORT", "http"),
        ("LOCAL_RANK", None),
        ("LOCAL_RANK", "x"),
        ("LOCAL_WORLD_SIZE", None),
        ("LOCAL_WORLD_SIZE", "0"),
    ],
)
def test_what_processes_need_to_meet_is_checked(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, text in COMPLETE.items():
        monkeypatch.setenv(key, text)
    check_environment()
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"variable {name} ") as caught:
        check_environment()
    assert "torchrun" in caught.value.remedy
