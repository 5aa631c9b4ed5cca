"""Pages drawn without a browser: what they say of repeated and reused evaluations."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.integration.seeded_zoo import seed_store
from zoo.jobs import JobKind
from zoo.store import open_store

PAGE = """
import streamlit as st
from ui.connection import Connection
from ui.views import candidate, job, jobs, submit
from ui.website import Site

class Standing(Site):
    def link(self, page, label, *, icon=None, **query):
        st.write(f"to {page}: {label}")

VIEW.draw(Standing(connection=Connection(url="URL")))
"""


@pytest.fixture(scope="module")
def reusing(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A store, a job in it with one candidate, and the job that this was reused from."""
    seed = seed_store(tmp_path_factory.mktemp("pages"), candidates=6)
    store = open_store(seed.url)
    job = store.jobs.submit(JobKind.SEARCH, seed.done.spec)
    claimed = store.jobs.claim("w", lease_s=60, job_id=job.id)
    assert claimed is not None
    first = store.jobs.candidates(seed.done.id)[0]
    reused = {"job": job.id, "repeats": 3, "spread": {"accuracy": 0.01}, "chain": None}
    reused |= {"reused_from": seed.done.id, "saved_s": 7.0}
    store.jobs.put_candidate(dataclasses.replace(first, **reused), claimed.token)
    store.close()
    return seed.url, job.id, seed.done.id


def draw(view: str, url: str, **query: str) -> AppTest:
    page = AppTest.from_string(PAGE.replace("VIEW", view).replace("URL", url), default_timeout=60)
    for name, value in query.items():
        page.query_params[name] = value
    return page.run()


def said(page: AppTest) -> list[Any]:
    assert [item.value for item in page.exception] == []
    return [item.value for item in (*page.markdown, *page.caption)]


def test_a_candidate_shows_means_spread_and_origin(reusing: tuple[str, str, str]) -> None:
    url, job, origin = reusing
    page = draw("candidate", url, job=job, number="0", arm="baseline")
    assert any("Means of 3 evaluations" in text for text in said(page))
    assert f"to job: evaluated by {origin[:12]}" in said(page)
    assert [item.delta for item in page.metric if item.label == "accuracy"] == ["± 0.01"]


@pytest.mark.parametrize("view", ["jobs", "job"])
def test_savings_are_shown_with_their_origins(reusing: tuple[str, str, str], view: str) -> None:
    url, job, origin = reusing
    text = said(draw(view, url, **({"job": job} if view == "job" else {})))
    assert f"to job: {origin[:12]}" in text
    assert "7.0 s saved" in text or view == "jobs"


def test_a_policy_that_is_chosen_stands_in_the_request(reusing: tuple[str, str, str]) -> None:
    page = draw("submit", reusing[0])
    assert "max-duplicates" not in page.code[-2].value
    page.number_input(key="max-duplicates").set_value(3)
    page.number_input(key="forget").set_value(0.1)
    page.run()
    commands = [item.value for item in page.code if item.value.startswith("blockyard search run")]
    assert "--max-duplicates 3 --forget 0.1" in commands[0]


SETTINGS = """
import json
import streamlit as st
from ui.views.submit import _choice
params = {"z": 3, "clip": 5, "batches": 100, "racing": True, "kinds": {}, "skip": None}
params |= {"base": "darts", "rule": "published"}
types = {"z": "float", "clip": "float | None", "batches": "int", "racing": "bool"}
types |= {"kinds": "Mapping[str, Any]", "skip": "bool | None", "base": "str", "rule": "Rule"}
entries = [{"name": "mine", "params": params, "types": types}]
st.code(json.dumps(_choice("Method", entries, key="m", usual="mine")))
"""


def test_a_setting_may_be_whatever_its_type_allows() -> None:
    page = AppTest.from_string(SETTINGS, default_timeout=60).run()
    assert json.loads(page.code[0].value) == {"name": "mine"}
    page.number_input(key="m-mine-z").set_value(2.5)
    page.number_input(key="m-mine-batches").set_value(7)
    page.text_input(key="m-mine-clip").set_value("")
    page.text_input(key="m-mine-kinds").set_value('{"expand": 2}')
    page.text_input(key="m-mine-skip").set_value("true")
    assert page.text_input(key="m-mine-base").value == "darts"
    page.text_input(key="m-mine-base").set_value("snas")
    said(page.run())
    chosen = {"z": 2.5, "batches": 7, "clip": None, "kinds": {"expand": 2}, "skip": True}
    chosen |= {"base": "snas"}
    assert json.loads(page.code[0].value)["params"] == chosen
