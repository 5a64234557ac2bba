"""Settings that are a number or a range, and flags that are none."""

import pytest

from raytag.arguments import read_range, read_settings
from raytag.errors import SettingsError
from raytag.serve.settings import ServeSettings


@pytest.mark.parametrize(("said", "read"), [("3", (3, 3)), ("2:8", (2, 8)), ("1:1", (1, 1))])
def test_a_range_is_a_number_or_two(said: str, read: tuple[int, int]) -> None:
    assert read_range("workers", said) == read


@pytest.mark.parametrize("said", ["", "0", "0:3", "8:2", "two", "2:", ":2", "-1", "1.5", "٣", "2 "])
def test_anything_else_is_refused_by_the_settings_name(said: str) -> None:
    with pytest.raises(SettingsError, match="^actors must be auto, a number or a range"):
        read_range("actors", said, "auto, ")


@pytest.mark.parametrize("flag", ["--bas", "--queue", "--bases", "--limits.requests"])
def test_no_flag_stands_for_another(flag: str) -> None:
    assert read_settings(ServeSettings, ["--base", "b"], "serve.py").base == "b"
    with pytest.raises(SettingsError, match=flag):
        read_settings(ServeSettings, ["--base", "b", flag, "1"], "serve.py")
