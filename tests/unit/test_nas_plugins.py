"""Plug-ins by name: what is built, what is said when a name, a value or a package is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nas.plugins import (
    MethodContext,
    catalogue,
    check_method,
    make_evaluator,
    make_method,
    make_space,
    method_class,
    space_of,
)
from nas.spaces.darts import DartsSpace
from zoo.canonical import canonical_json
from zoo.errors import InvalidInputError, UnknownNameError
from zoo.spec import Architecture, Evaluation

SPACE = DartsSpace(cells=1, nodes=1)


class Scores:
    def describe(self) -> dict[str, Any]:
        return {}

    def evaluate(self, architecture: Architecture) -> Evaluation:
        return Evaluation(metrics={"accuracy": 0.5, "latency_ms": 1.0}, cost_s=0.0)


def test_a_space_is_built_from_its_own_description() -> None:
    described = SPACE.describe()
    built = make_space(str(described["name"]), described["params"])  # type: ignore[arg-type]
    assert built.describe() == described


def test_an_architecture_finds_its_space() -> None:
    import random

    architecture = SPACE.sample(random.Random(0))
    again = Architecture.from_json(architecture.to_json())
    assert space_of(again).describe() == SPACE.describe()
    with pytest.raises(InvalidInputError):
        space_of(Architecture(space=architecture.space, choices=(10_000,)))
    with pytest.raises(InvalidInputError, match="does not describe a search space"):
        space_of(Architecture(space={"params": {}}, choices=()))


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown search space 'dart'; .*: .*darts"):
        make_space("dart")
    with pytest.raises(UnknownNameError, match="search method 'x'.*nsga2.*pc-darts.*random.*tpe"):
        method_class("x")
    with pytest.raises(UnknownNameError, match="evaluator 'x'.*training"):
        make_evaluator("x", {}, None)  # type: ignore[arg-type]


def test_an_unknown_parameter_lists_the_legal_ones() -> None:
    with pytest.raises(
        UnknownNameError, match="parameter of search space 'darts' 'cell'; .* cells, channels"
    ):
        make_space("darts", {"cell": 3})
    context = MethodContext(space=SPACE, evaluator=Scores())
    with pytest.raises(UnknownNameError, match="'nsga2' 'context'; .* candidates, crossover"):
        make_method("nsga2", {"context": 3}, context)


def test_a_refused_value_is_named() -> None:
    with pytest.raises(InvalidInputError, match="channels is 0"):
        make_space("darts", {"channels": 0})
    context = MethodContext(space=SPACE, evaluator=Scores())
    with pytest.raises(InvalidInputError, match="candidates is 'many'"):
        make_method("random", {"candidates": "many"}, context)


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("snas", {"augment": "no"}, "'snas': augment is 'no'; it must be true or false"),
        ("snas", {"lr": "fast"}, "lr is 'fast'; it must be a number"),
        ("rsps", {"lr": True}, "lr is True; it must be a number"),
        ("bossnas", {"layers": 2}, "layers is 2; it must be a list or none"),
        ("gm-nas", {"base_params": "x"}, "base_params is 'x'; it must be a mapping or none"),
        ("gm-nas", {"racing": None}, "racing is None; it must be true or false"),
        ("few-shot", {"base": 7}, "base is 7; it must be a text"),
        ("few-shot", {"edge": 1.5}, "edge is 1.5; it must be an integer or none"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_annotation(
    method: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        check_method(method, params)


def test_what_an_annotation_allows_is_left_to_the_plug_in() -> None:
    check_method("pc-darts-imagenet", {"arch_clip_norm": None, "lr": 1})
    check_method("gm-nas", {"objective": 7, "checkpoints": (1, 2), "base_params": {}})


def test_a_method_without_what_it_needs_says_so() -> None:
    with pytest.raises(InvalidInputError, match="'tpe' samples and needs an evaluator"):
        make_method("tpe", {}, MethodContext(space=SPACE))
    with pytest.raises(InvalidInputError, match="'pc-darts' trains a supernet and needs data"):
        make_method("pc-darts", {}, MethodContext(space=SPACE, evaluator=Scores()))


def test_methods_say_where_they_run() -> None:
    trains = {name: method_class(name).trains for name in ("pc-darts", "nsga2", "tpe", "random")}  # type: ignore[attr-defined]
    assert trains == {"pc-darts": True, "nsga2": False, "tpe": False, "random": False}


def test_directions_follow_from_the_objectives() -> None:
    context = MethodContext(space=SPACE, objectives=("flops", "accuracy"))
    assert context.directions == ("minimize", "maximize")
    with pytest.raises(UnknownNameError, match="objective 'speed'"):
        MethodContext(space=SPACE, objectives=("speed",))
    with pytest.raises(InvalidInputError, match="no objective"):
        MethodContext(space=SPACE, objectives=())
    with pytest.raises(InvalidInputError, match="2 directions for 1 objectives"):
        MethodContext(space=SPACE, objectives=("accuracy",), directions=("maximize", "minimize"))


def test_the_catalogue_is_json_and_names_every_parameter() -> None:
    listed = catalogue()
    assert canonical_json(listed)
    spaces: dict[str, Any] = {item["name"]: item for item in listed["spaces"]}  # type: ignore
    assert spaces["darts"]["params"]["cells"] == 3
    assert spaces["darts"]["summary"].startswith("The cell space of DARTS")
    methods: dict[str, Any] = {item["name"]: item for item in listed["methods"]}  # type: ignore
    assert {"nsga2", "pc-darts", "random", "tpe"} <= methods.keys()
    assert methods["nsga2"]["params"]["candidates"] == 24
    assert "context" not in methods["nsga2"]["params"]
    assert not [item for item in methods.values() if "error" in item]
    assert (methods["gm-nas"]["params"]["z"], methods["gm-nas"]["types"]["z"]) == (3, "float")
    assert spaces["hybrid"]["params"]["conv_settings"] == {}
    assert {"training"} <= {item["name"] for item in listed["evaluators"]}  # type: ignore
    assert {"digits"} <= {item["name"] for item in listed["data"]}  # type: ignore


BROKEN = """
[blockyard.spaces]
absent = no_such_module:Space
raises = raising_module:Space
function = os.path:join
twice = nas.spaces.darts:DartsSpace
plain = nas.spaces.darts:DartsSpace

[blockyard.blocks]
mine = raising_module
"""

CODE = """
from functools import partial
from nas.plugins import catalogue, make_space
from zoo.builders import operation
from zoo.errors import BlockyardError
for item in catalogue()["spaces"]:
    print(item["name"], "|", item.get("error", "fine"))
for make in (partial(make_space, "twice"), partial(operation, "mine.block")):
    try:
        make()
    except BlockyardError as error:
        print(type(error).__name__, error)
print(operation("mbconv.block").build.__module__)
"""


def distribution(folder: Path, name: str, points: str) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


def test_a_broken_plug_in_is_listed_and_takes_nothing_down(tmp_path: Path) -> None:
    distribution(tmp_path, "broken", BROKEN)
    distribution(tmp_path, "other", "[blockyard.spaces]\ntwice = os.path:join\n")
    (tmp_path / "raising_module.py").write_text("raise RuntimeError('no GPU driver')\n")
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = dict(line.split(" | ") for line in result.stdout.splitlines() if " | " in line)
    assert "ModuleNotFoundError: No module named 'no_such_module'" in lines["absent"]
    assert "RuntimeError: no GPU driver" in lines["raises"]
    assert "is not a class" in lines["function"]
    assert "uninstall all but one" in lines["twice"]
    assert lines["plain"] == lines["darts"] == "fine"
    assert "ConflictError search space 'twice' is registered by" in result.stdout
    said = "InvalidInputError unknown block operation 'mine.block'; choose one of: "
    assert said in result.stdout
    assert "mine (raising_module): RuntimeError: no GPU driver" in result.stdout
    assert result.stdout.endswith("zoo.families.mbconv\n")
