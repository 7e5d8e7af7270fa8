"""docs/configuration.md says what the settings classes say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from flotta_runtime.settings import Settings
from flotta_runtime.settings_load import variables

ROOT = Path(__file__).resolve().parents[3]
spec = importlib.util.spec_from_file_location("gen_config_docs", ROOT / "scripts" / "gen_config_docs.py")
if spec is None or spec.loader is None:
    raise RuntimeError("scripts/gen_config_docs.py is missing")
gen_config_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gen_config_docs)


def settings_classes() -> list[type[Settings]]:
    return [gen_config_docs._settings(package) for package in gen_config_docs.SERVICES]


def test_the_page_is_up_to_date() -> None:
    written = gen_config_docs.PAGE.read_text("utf-8")
    assert written == gen_config_docs.page(), "run python scripts/gen_config_docs.py"


@pytest.mark.parametrize("settings", settings_classes(), ids=lambda found: str(found.service))
def test_every_field_is_described(settings: type[Settings]) -> None:
    assert [name for name, info in settings.model_fields.items() if not info.description] == []


def test_no_variable_means_two_things() -> None:
    for settings in settings_classes():
        names = [variable for name in settings.model_fields for variable in variables(settings, name)]
        assert len(set(names)) == len(names)
