"""The reference pages say what the code says: every verb, setting and error."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from livemove.base.errors import by_code, every_error
from livemove.base.settings import HostSettings
from livemove.cli import reference
from livemove.cli.main import app

DOCS = reference.DOCS_DIR


def test_the_committed_pages_are_fresh() -> None:
    assert reference.stale_pages() == [], "run 'python -m livemove.cli.reference --write'"


def test_staleness_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference.write_pages(tmp_path)
    assert reference.stale_pages(tmp_path) == []
    (tmp_path / "cli.md").write_text("old")
    (tmp_path / "errors.md").unlink()
    assert reference.stale_pages(tmp_path) == ["cli.md", "errors.md"]
    monkeypatch.setattr(reference, "stale_pages", lambda: ["cli.md"])
    assert reference.main([]) == 1
    assert "docs/cli.md is stale" in capsys.readouterr().err


def test_every_verb_is_documented() -> None:
    text = (DOCS / "cli.md").read_text()
    assert {"livemove migrate", "livemove vm start", "livemove lab run", "livemove bench run"} < set(reference.verbs())
    for verb in reference.verbs():
        assert f"\n## {verb}\n" in text


def test_every_option_is_documented_with_its_value_named() -> None:
    text = (DOCS / "cli.md").read_text()

    def check(command: object) -> None:
        for child in getattr(command, "commands", {}).values():
            check(child)
        for parameter in command.params:  # type: ignore[attr-defined]
            assert parameter.help, parameter.name
            is_flag = parameter.param_type_name == "option" and getattr(parameter, "is_flag", False)
            assert is_flag or parameter.metavar, parameter.name
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert f"`{parameter.opts[0]}" in text

    check(typer.main.get_command(app))


def test_every_setting_is_documented() -> None:
    text = (DOCS / "settings.md").read_text()
    for name, setting in HostSettings.model_fields.items():
        assert setting.description
        assert f"| `{name}` |" in text


def test_every_error_is_documented_and_codes_are_distinct() -> None:
    text = (DOCS / "errors.md").read_text()
    kinds = reference.errors()
    for kind in kinds:
        assert f"| {kind.exit_code} | `{kind.code}` |" in text
    codes = [kind.exit_code for kind in kinds]
    assert len(codes) == len(set(codes))
    assert by_code()["usage"] in kinds
    ours = [kind for kind in every_error() if kind.__module__.startswith("livemove.")]
    assert set(ours) == set(kinds), "an error class that docs/errors.md does not know"
