"""The command line against a real store: answers, errors, exit codes and what it imports."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.integration.seeded_zoo import Seed, seed_store
from ui.cli import cli, run
from ui.commands.train import request, train
from ui.terminal import Command
from zoo.client import Zoo
from zoo.schemas import Recipe, TrainRequest


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Seed:
    return seed_store(tmp_path_factory.mktemp("seeded"))


class Answer:
    """What a run of the command line said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def blockyard(seed: Seed, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str) -> Answer:
        capsys.readouterr()
        code = run(["--url", seed.url, *words])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call


def leaves(group: Any = cli) -> list[str]:
    found = []
    for name, command in group.commands.items():
        nested = getattr(command, "commands", None)
        found += [f"{name} {rest}" for rest in leaves(command)] if nested else [name]
    return found


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = f"""
import sys
from ui.cli import run
for words in {[name.split() for name in leaves()]!r}:
    run([*words, "--help"])
heavy = {{"torch", "sqlalchemy", "celery", "streamlit", "pandas", "plotly", "numpy", "pydantic"}}
sys.exit(", ".join(sorted(heavy & sys.modules.keys())) or 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Usage: blockyard") == len(leaves())


def test_every_command_answers_in_json_and_has_a_help_line() -> None:
    for name in leaves():
        command: Any = cli
        for word in name.split():
            command = command.commands[word]
        assert isinstance(command, Command), name
        assert command.help, name
        assert any("--json" in parameter.opts for parameter in command.params), name


def test_jobs_are_listed_newest_first_in_every_form(seed: Seed, blockyard: Any) -> None:
    ids = [seed.running.id, seed.done.id, seed.failed.id]
    assert blockyard("job", "list", "-q").out.split() == ids
    assert [job["id"] for job in blockyard("job", "list", "--json").json] == ids
    lines = blockyard("job", "list").out.splitlines()
    assert lines[0].split("\t")[:3] == ["JOB", "KIND", "NAME"]
    assert lines[1].split("\t")[2] == "under way"
    assert "9/24" in lines[1]
    assert blockyard("job", "list", "--state", "failed", "-q").out.split() == [seed.failed.id]


@pytest.mark.parametrize("form", ["id", "prefix", "bare", "name"])
def test_a_job_is_found_by_id_prefix_or_name(seed: Seed, blockyard: Any, form: str) -> None:
    job = seed.done
    reference = {
        "id": job.id,
        "prefix": job.id[:12],
        "bare": job.id.removeprefix("job_")[:8],
        "name": job.name,
    }[form]
    assert blockyard("job", "show", reference, "--json").json["id"] == job.id


def test_last_is_the_newest_job(seed: Seed, blockyard: Any) -> None:
    assert blockyard("job", "show", "last", "--json").json["id"] == seed.running.id


def test_show_names_winners_and_savings(seed: Seed, blockyard: Any) -> None:
    answer = blockyard("job", "show", seed.done.id)
    assert seed.chain.id[:12] in answer.out
    assert "3 reused" in answer.err
    assert "chain export" in answer.err


def test_watching_a_job_that_has_ended_says_how_it_ended(seed: Seed, blockyard: Any) -> None:
    assert blockyard("job", "watch", seed.done.id).code == 0
    answer = blockyard("job", "watch", seed.failed.id)
    assert answer.code == 1
    assert "absent.npz is not there" in answer.err
    lines = blockyard("job", "watch", seed.done.id, "--json").out.splitlines()
    assert json.loads(lines[-1])["state"] == "succeeded"


def test_logs_are_lines_or_json_lines(seed: Seed, blockyard: Any) -> None:
    assert (
        "warning  candidate 5 failed: the trainer was killed"
        in blockyard("job", "logs", seed.done.id).out
    )
    lines = blockyard("job", "logs", seed.done.id, "--json").out.splitlines()
    numbers = [json.loads(line)["number"] for line in lines]
    assert numbers == sorted(numbers)
    after = blockyard("job", "logs", seed.done.id, "--after", str(numbers[-2]), "--json").out
    assert len(after.splitlines()) == 1


def test_a_search_is_submitted_once_per_idempotency_key(blockyard: Any) -> None:
    words = ["search", "run", "-m", "random", "--space", "darts", "--data", "digits", "-d", "-q"]
    first = blockyard(*words, "--idempotency-key", "once")
    again = blockyard(*words, "--idempotency-key", "once")
    assert first.code == again.code == 0
    assert first.out == again.out
    other = blockyard(*words, "--seed", "9", "--idempotency-key", "once")
    assert other.code == 1
    assert other.err.startswith("error: ")


def test_a_spec_file_is_overruled_by_options(tmp_path: Path, blockyard: Any) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(
        "method: {name: nsga2, params: {candidates: 8}}\nspace: {name: darts}\n"
        "data: digits\nseed: 1\nrecipe: {epochs: 2, lr: 0.1}\n"
    )
    answer = blockyard(
        "search", "run", "--spec", str(path), "--seed", "5", "-p", "crossover=0.5",
        "--epochs", "1", "--limit", "latency_ms<=3", "--detach", "--json",
    )  # fmt: skip
    spec = answer.json["spec"]
    assert spec["seed"] == 5
    assert spec["method"]["params"] == {"candidates": 8, "crossover": 0.5}
    assert spec["recipe"]["epochs"] == 1
    assert spec["recipe"]["lr"] == 0.1
    assert spec["limits"] == [{"metric": "latency_ms", "max": 3, "min": None}]
    words = ["search", "run", "--spec", str(path), "-r", "preset=darts-cifar", "-d", "--json"]
    expected = Recipe.model_validate({"preset": "darts-cifar"}).model_dump(mode="json")
    assert blockyard(*words).json["spec"]["recipe"] == expected


def test_a_search_over_a_table_names_its_evaluator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run([
        "--url", f"sqlite:///{tmp_path}/zoo.db", "search", "run", "-m", "evolution",
        "--space", "nas-bench-201", "--data", "digits", "-e", "tabular", "-E", "device=pixel3",
        "--winners", "0", "--detach", "--json",
    ])  # fmt: skip
    assert code == 0
    spec = json.loads(capsys.readouterr().out)["spec"]
    assert spec["evaluator"] == {"name": "tabular", "params": {"device": "pixel3"}}
    assert spec["winners"] == 0


def test_a_spec_file_may_name_its_parts_by_their_names_alone(
    tmp_path: Path, blockyard: Any
) -> None:
    path = tmp_path / "search.json"
    spec = {"method": "random", "space": "darts", "data": "digits"}
    path.write_text(json.dumps(spec))
    words = ["search", "run", "--spec", str(path), "-p", "candidates=3", "-d", "--json"]
    made = blockyard(*words).json["spec"]
    assert made["method"] == {"name": "random", "params": {"candidates": 3}}
    assert made["space"] == {"name": "darts", "params": {}}
    path.write_text(json.dumps(spec | {"method": ["random"]}))
    assert blockyard(*words).code == 2
    path.write_text(json.dumps(spec | {"recipe": 3}))
    assert "recipe" in blockyard(*words, "--epochs", "1").err


def test_a_job_is_paused_resumed_cloned_and_cancelled(blockyard: Any) -> None:
    words = ["-m", "random", "--space", "darts", "--data", "digits", "-d", "-q"]
    job = blockyard("search", "run", *words, "--name", "mine").out.strip()
    assert blockyard("job", "pause", job, "--json").json["state"] == "paused"
    assert blockyard("job", "resume", job, "-d", "--json").json["state"] == "queued"
    clone = blockyard("job", "clone", "mine", "--set", "method.params.candidates=2", "-d", "--json")
    assert clone.json["spec"]["method"]["params"] == {"candidates": 2}
    changes = ("--set", "recipe.preset=darts-cifar", "--set", "recipe.epochs=2")
    published = blockyard("job", "clone", "mine", *changes, "-d", "--json").json["spec"]["recipe"]
    expected = Recipe.model_validate({"preset": "darts-cifar", "epochs": 2})
    assert published == expected.model_dump(mode="json")
    refused = blockyard("job", "delete", job, "--yes")
    assert refused.code == 1
    assert "cancel it first" in refused.err
    assert blockyard("job", "cancel", job, "--json").json["state"] == "cancelled"
    again = blockyard("job", "cancel", job)
    assert again.code == 1
    assert "cancelled" in again.err
    assert "--yes" in blockyard("job", "delete", job).err
    assert blockyard("job", "delete", job, "--yes", "--json").json == {"id": job, "deleted": True}
    assert blockyard("job", "show", job).code == 1


def test_the_catalogue_comes_from_live_workers(blockyard: Any) -> None:
    assert [entry["name"] for entry in blockyard("method", "list", "--json").json] == [
        "nsga2",
        "random",
    ]
    assert blockyard("space", "show", "darts").out.splitlines()[0].split() == ["name", "darts"]
    assert blockyard("data", "list", "-q").out.split() == ["digits"]


def test_without_a_worker_the_catalogue_comes_from_this_installation(
    tmp_path: Path, blockyard: Any
) -> None:
    names = blockyard("method", "list", "-q", "--url", f"sqlite:///{tmp_path / 'new.db'}").out
    assert {"pc-darts", "nsga2", "tpe", "random"} <= set(names.split())
    words = ["search", "run", "--space", "darts", "--data", "digits", "-d"]
    wrong = blockyard(*words, "-m", "nope", "--url", f"sqlite:///{tmp_path / 'new.db'}")
    assert wrong.code == 2
    assert "pc-darts" in wrong.err


def test_a_local_worker_looks_for_data_where_it_was_told(tmp_path: Path, blockyard: Any) -> None:
    words = ["search", "run", "-m", "random", "--space", "darts", "--data", "npz:absent.npz"]
    folder = tmp_path / "sets"
    folder.mkdir()
    url = f"sqlite:///{tmp_path / 'new.db'}"
    answer = blockyard("--data-dir", str(folder), *words, "--url", url)
    assert answer.code == 1
    assert f"{folder}/absent.npz" in answer.err


def test_the_zoo_is_listed_and_shown(seed: Seed, blockyard: Any) -> None:
    assert blockyard("zoo", "list", "-q").out.split() == [seed.chain.id]
    assert blockyard("zoo", "list", "-q", "--min-accuracy", "0.99").out == ""
    cells = blockyard("zoo", "list", "--blocks", "--op", "darts.cell", "-q").out.split()
    assert set(cells) == {block.id for block in seed.chain.blocks[1:4]}
    shown = blockyard("zoo", "show", "champion", "--json").json
    assert shown["id"] == seed.chain.id
    assert {profile["runtime"] for profile in shown["profiles"]} == {"torch", "onnx"}
    assert blockyard("zoo", "show", cells[0], "--json").json["chains"] == [seed.chain.id]
    wrong = blockyard("zoo", "list", "--blocks", "--task", "digits")
    assert wrong.code == 2
    assert "--task" in wrong.err


def test_chains_are_exported_whole_and_never_over_a_file(
    seed: Seed, blockyard: Any, tmp_path: Path
) -> None:
    onnx = tmp_path / "model.onnx"
    assert blockyard("chain", "export", "champion", "-o", str(onnx)).code == 0
    assert onnx.read_bytes() == b"an ONNX file"
    refused = blockyard("chain", "export", "champion", "-o", str(onnx))
    assert refused.code == 2
    assert "--force" in refused.err
    weights = tmp_path / "model.safetensors"
    assert blockyard("chain", "export", "champion", "-o", str(weights), "--json").json["size_bytes"]
    with Zoo(seed.url) as zoo, safe_open(weights, "pt") as tensors:
        model = zoo.load("champion")
        stored = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        assert json.loads(tensors.metadata()["chain"])["id"] == seed.chain.id
    state = model.state_dict()
    assert len(stored) == len(state)
    assert all(any(tensor.equal(other) for other in state.values()) for tensor in stored.values())


def test_damage_is_found_and_named(tmp_path: Path, blockyard: Any) -> None:
    damaged = seed_store(tmp_path, candidates=1)
    digest = damaged.chain.blocks[0].weights
    (path,) = (path for path in tmp_path.rglob(f"*{digest[-16:]}*") if path.is_file())
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    answer = blockyard("zoo", "verify", "--url", damaged.url)
    assert answer.code == 1
    assert digest in answer.out
    assert "corrupt" in answer.err
    kind = ["--format", "safetensors", "-o", str(tmp_path / "x")]
    export = blockyard("chain", "export", "champion", *kind, "--url", damaged.url)
    assert export.code == 1
    assert digest in export.err
    assert not (tmp_path / "x").exists()


def test_garbage_is_counted_before_it_is_deleted(blockyard: Any) -> None:
    assert blockyard("zoo", "gc", "--json").json == {"blocks": 0, "files": 0, "deleted": False}
    assert blockyard("zoo", "gc", "--yes", "--json").json["deleted"] is True


def test_a_key_is_shown_once_and_revoked(blockyard: Any) -> None:
    made = blockyard("key", "create", "ci", "--scope", "read", "--scope", "submit", "--json").json
    assert made["secret"].startswith("by_")
    listed = blockyard("key", "list", "--json")
    assert made["secret"] not in listed.out
    assert [key["scopes"] for key in listed.json if key["id"] == made["id"]] == [["read", "submit"]]
    assert blockyard("key", "revoke", made["id"]).code == 0
    row = next(line for line in blockyard("key", "list").out.splitlines() if made["id"] in line)
    assert row.endswith("revoked")


def test_an_owner_is_kept_from_sharing(blockyard: Any) -> None:
    made = blockyard("key", "create", "lab", "--no-share", "--json").json
    assert made["shares"] is False
    row = next(line for line in blockyard("key", "list").out.splitlines() if made["id"] in line)
    assert "\tno\t" in row
    assert blockyard("key", "update", made["id"], "--share").out == "lab  shares evaluations\n"
    assert blockyard("key", "create", "more", "--owner", "lab", "--json").json["shares"] is True
    assert blockyard("key", "update", made["id"]).code == 2


def test_savings_are_shown_with_their_origins(seed: Seed, blockyard: Any) -> None:
    answer = blockyard("job", "savings", seed.done.id)
    assert "reused             3" in answer.out
    assert "REUSED FROM" in answer.out
    found = blockyard("job", "savings", seed.done.id, "--json").json
    assert found["hits"] == sum(item["hits"] for item in found["origins"]) == 3
    assert blockyard("job", "savings", "--owner", "nobody", "--json").json["candidates"] == 0
    shown = blockyard("job", "show", seed.done.id, "--json").json
    assert shown["origins"] == found["origins"]


PASSWORD = "xyzzy"


@pytest.mark.parametrize(
    "words",
    [
        ["worker", "--broker", f"redis://:{PASSWORD}@127.0.0.1:6379/0"],
        ["serve"],
        ["up"],
        ["ui"],
        ["db", "current"],
        ["db", "upgrade"],
        ["--yes", "db", "downgrade", "base"],
    ],
)
def test_no_process_is_started_with_a_password_in_its_command_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def become(_: str, command: list[str], environment: dict[str, str]) -> None:
        started.append((command, environment))
        raise SystemExit(0)

    monkeypatch.setattr("os.execve", become)
    url = f"postgresql+psycopg://blockyard:{PASSWORD}@127.0.0.1/zoo"
    with pytest.raises(SystemExit):
        run(["--url", url, "--files", "/tmp/files", *words])
    ((command, environment),) = started
    assert not any(PASSWORD in word for word in command)
    assert environment["BLOCKYARD_URL"] == url
    assert environment["BLOCKYARD_FILES"] == "/tmp/files"
    if "--broker" in words:
        assert environment["BLOCKYARD_BROKER"] == words[-1]


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["nonsense"], 2, "nonsense"),
        (["job", "list", "--state", "odd"], 2, "odd"),
        (["search", "run"], 2, "--method, --space, --data"),
        (["search", "run", "--spec", "/absent.json"], 2, "/absent.json"),
        (["search", "run", "-m", "a", "--space", "b", "--data", "c", "-l", "x"], 2, "'x'"),
        (["search", "run", "-m", "a", "--space", "b", "--data", "c", "-r", "lr=-1"], 2, "lr"),
        (["search", "run", "-m", "a", "--space", "b", "--data", "c", "-o", "beauty"], 2, "beauty"),
        (["search", "run", "-m", "nope", "--space", "darts", "--data", "digits", "-d"], 2, "nope"),
        (["chain", "assemble", "--objective", "foo", "-d"], 2, "latency_ms"),
        (["chain", "assemble", "--name", "deadbeef00", "-d"], 2, "hex digits"),
        (["chain", "export", "champion", "-o", "/proc/absent/x.onnx"], 1, "/proc/absent"),
        (["job", "show", "absent"], 1, "absent"),
        (["job", "show", "job_00000000-0000-0000-0000-000000000000"], 1, "job_00000000"),
        (["zoo", "show", "absent"], 1, "absent"),
        (["space", "show", "dart"], 2, "darts"),
        (["zoo", "list", "--order", "beauty"], None, "latency"),
        (["job", "list", "--url", "mysql://nowhere"], 2, "mysql"),
        (["serve", "--url", "http://127.0.0.1:9"], 2, "http://127.0.0.1:9"),
        (["job", "list", "--url", "http://127.0.0.1:9"], 1, "127.0.0.1:9"),
    ],
)
def test_errors_are_one_line_that_names_the_value(
    blockyard: Any, words: list[str], code: int | None, named: str
) -> None:
    answer = blockyard(*words)
    assert answer.code in ({1, 2} if code is None else {code})
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert named in answer.err


def test_the_schema_is_upgraded_and_shown_by_a_process_of_its_own(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'zoo.db'}"
    words = [sys.executable, "-c", "from ui.cli import main; main()", "--url", url, "db"]
    upgraded = subprocess.run([*words, "upgrade"], capture_output=True, text=True)
    assert upgraded.returncode == 0, upgraded.stderr
    current = subprocess.run([*words, "current"], capture_output=True, text=True)
    assert current.stdout == upgraded.stdout
    assert current.stdout.strip()
    said = subprocess.run([*words, "current", "--json"], capture_output=True, text=True)
    assert json.loads(said.stdout) == {"revision": current.stdout.strip()}
    refused = subprocess.run(
        [*words, "downgrade", "base"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert refused.returncode == 2
    assert "--yes" in refused.stderr


def test_ctrl_c_pauses_the_job_and_says_how_to_go_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'zoo.db'}"
    words = [sys.executable, "-c", "from ui.cli import main; main()", "--url", url]
    words += ["search", "run", "-m", "random", "-p", "candidates=500", "--space", "darts"]
    words += ["-s", "channels=4", "-s", "nodes=2", "--data", "digits", "--epochs", "1"]
    searching = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert searching.stderr is not None
        for line in searching.stderr:
            if line.startswith("running"):
                break
        searching.send_signal(signal.SIGINT)
        _, said = searching.communicate(timeout=60)
    finally:
        searching.kill()
        searching.communicate()  # closes its pipes
    assert searching.returncode == 130, said
    assert "job resume job_" in said
    assert "Traceback" not in said
    with Zoo(url) as zoo:
        assert [str(job.state) for job in zoo.jobs()] == ["paused"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "a training needs a network .* and --data .* for example: blockyard train --network"),
        ("--chain trunk", "a training needs --data"),
        ("--data digits", "a training needs a network"),
        ("--choices 1,2 --data digits", "--choices is read by a space; name it"),
        ("--space darts --data digits", "--space alone names no network; say which"),
        ("--space darts --chain trunk --data digits", "named by --chain and --space"),
        ("--network vgg --data digits", "'vgg'; choose one of: darts-cifar"),
    ],
)
def test_a_training_that_names_too_little_says_what_and_how(
    blockyard: Any, words: str, said: str
) -> None:
    told = blockyard("train", *words.split())
    assert told.code != 0
    assert re.search(said, told.err)
    assert "Field required" not in told.err


def test_a_published_network_is_trained_by_its_name(seed: Seed) -> None:
    names = [parameter.name for parameter in train.params]
    options = dict.fromkeys(names) | {"space_params": (), "recipe": ()}
    given = {"network": "darts-cifar", "data": "cifar10", "preset": "darts-cifar"}
    with Zoo(seed.url) as zoo:
        spec = TrainRequest.model_validate(request(zoo, {**options, **given}))
    assert spec.space is not None
    assert spec.space.params == {"cells": 20, "channels": 36}
    assert spec.recipe.auxiliary == 0.4
