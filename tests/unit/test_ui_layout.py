"""Streamlit puts ui/ first on the path: nothing in it may hide another module."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions
from pathlib import Path

UI = Path(__file__).parents[2] / "ui"


def test_no_module_of_the_pages_hides_another_one() -> None:
    names = {path.stem for path in UI.iterdir() if path.suffix == ".py" or path.is_dir()}
    ours = {"__init__", "__pycache__", ".streamlit"}
    assert not names & set(sys.stdlib_module_names)
    assert not (names - ours) & packages_distributions().keys()


def test_there_is_no_folder_that_streamlit_takes_for_pages_of_its_own() -> None:
    assert not (UI / "pages").exists()
