"""Trainings of networks for the zoo: from an architecture or a chain, and past every kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch

from nas import checkpoint
from nas.data import load_dataset
from nas.evaluation import fresh_network, train_and_score
from nas.plugins import make_space, space_of
from nas.training import train
from tests import embedded, toys
from ui.cli import run
from workers.duties import SPLIT_SEED
from workers.embedded import EmbeddedWorker
from workers.train_job import with_classes
from zoo.errors import IncompatibleShapeError
from zoo.jobs import Arm, Job, JobKind, JobRequest, JobState
from zoo.schemas import Recipe, parse_request
from zoo.spec import Architecture, TensorSpec
from zoo.store.protocols import Store
from zoo.weights import load_chain

SPACE = {"name": "darts", "params": {"cells": 1, "channels": 2, "nodes": 1}}
GENOTYPE = "normal: skip_connect(0) + max_pool_3x3(1); reduce: skip_connect(0) + max_pool_3x3(1)"
SHORT = {"epochs": 1, "batch_size": 256}


PROGRAM = """
import sys
from tests import toys
from workers import commands
from workers.__main__ import parser
toys.install()
sys.exit(commands.run(parser().parse_args(sys.argv[1:]), toys.QUICK))
"""


url, store, worker = embedded.FIXTURES


def submit(store: Store, **request: Any) -> Job:
    whole = {"data": "digits", "recipe": SHORT, **request}
    spec = parse_request(JobKind.TRAIN, whole).model_dump(mode="json")
    return store.jobs.submit(JobKind.TRAIN, spec)


def result_of(store: Store, job: Job) -> dict[str, Any]:
    return dict(toys.succeeded(store, job.id, timeout_s=150.0).result or {})


TOY = {"name": "toy", "params": {"widths": [7]}}
LONG = {"epochs": 100, "batch_size": 128, "ema": 0.9, "cutout": 2, "dropout": 0.2}
"""A few seconds, of which every fifth is kept."""


def kept_epoch(store: Store, job: Job, arm: str = "") -> int:
    """Return up to which epoch a job's newest checkpoint goes, of a training of ``arm``."""
    for _, digest in store.jobs.checkpoints(job.id)[:1]:
        kept = checkpoint.unpack(store.files.get(digest))["training"]
        if kept is not None and kept["key"].startswith(arm):
            state = checkpoint.unpack(kept["state"].numpy().tobytes())
            return int(state["training"]["epoch"])
    return 0


wait_for = partial(toys.wait_for, timeout_s=150.0)
"""Processes start in between, which takes its time on a busy machine."""


def said(store: Store, job: Job) -> list[str]:
    return [event.message for event in store.jobs.events(job.id)]


def kill(worker: EmbeddedWorker) -> None:
    assert worker.trainer_pid is not None
    os.kill(worker.trainer_pid, signal.SIGKILL)


def test_a_training_survives_the_kill_of_its_worker_and_a_pause(
    store: Store, url: str, request: pytest.FixtureRequest
) -> None:
    job = submit(store, space=TOY, choices=[0, 0], recipe=LONG, seed=3)
    command = [sys.executable, "-c", PROGRAM, "run", job.id, "--db", url]
    victim = subprocess.Popen(
        command, env=toys.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: kept_epoch(store, job) > 0, what="an epoch that was kept")
    victim.kill()
    victim.wait()
    first = kept_epoch(store, job)
    request.getfixturevalue("worker")
    wait_for(lambda: kept_epoch(store, job) > first, what="an epoch in another worker")
    store.jobs.request(job.id, JobRequest.PAUSE)
    wait_for(lambda: store.jobs.job(job.id).state is JobState.PAUSED, what="the pause")
    assert first < kept_epoch(store, job) < 100
    store.jobs.resume(job.id)
    chain = store.blocks.chain(result_of(store, job)["chain"])
    assert sum("goes on from the last epoch" in line for line in said(store, job)) == 2
    curve = [event.data for event in store.jobs.events(job.id) if "epoch" in event.data][-1]
    assert curve["epoch"] == list(range(1, 101))

    data = load_dataset("digits", root=None, seed=SPLIT_SEED)
    architecture = Architecture.from_json(chain.card["architecture"])  # type: ignore[arg-type]
    module = fresh_network(space_of(architecture), architecture, data, seed=3)
    train(module, data, Recipe(**LONG), device=torch.device("cpu"), seed=3)
    stored = load_chain(chain, store.files).state_dict()
    assert all(torch.equal(stored[key], value) for key, value in module.state_dict().items())


def test_an_architecture_becomes_a_chain_like_a_winner(
    store: Store, worker: EmbeddedWorker
) -> None:
    job = submit(store, space=SPACE, genotype=GENOTYPE, alias="tiny", seed=1)
    result = result_of(store, job)
    chain = store.blocks.chain("tiny")
    assert chain.id == result["chain"]
    assert chain.card["genotype"] == result["summary"] == GENOTYPE
    assert chain.card["task"] == "digits"
    assert chain.card["method"] == "training"
    assert chain.card["metrics"] == result["metrics"]
    assert chain.card["recipe"]["epochs"] == 1  # type: ignore[index,call-overload]
    assert chain.card["latency"]["device"]["name"] == "cpu"  # type: ignore[index,call-overload]
    assert store.blocks.onnx(chain.id)
    for subject in (chain.id, *(block.id for block in chain.blocks)):
        measured = {(p.runtime, p.batch) for p in store.blocks.profiles(subject)}
        assert measured == {(r, b) for r in ("torch", "onnx") for b in (1, 8)}
    edges = {(edge.parent, edge.relation) for edge in store.blocks.lineage(chain.id)}
    assert (job.id, "trained-by") in edges
    (winner,) = store.jobs.candidates(job.id)
    assert (winner.arm, winner.chain) == (Arm.WINNER, chain.id)
    curves = [event.data for event in store.jobs.events(job.id) if event.data.get("kind")]
    assert curves[-1]["kind"] == "curve"
    assert curves[-1]["epoch"] == [1]
    assert "the network was trained for 1 epochs" in said(store, job)

    # What was trained is what the recipe makes of the same seed anywhere else.
    data = load_dataset("digits", root=None, seed=SPLIT_SEED)
    architecture = Architecture.from_json(winner.architecture)
    module = fresh_network(space_of(architecture), architecture, data, seed=1)
    train(module, data, Recipe(**SHORT), device=torch.device("cpu"), seed=1)
    stored = load_chain(chain, store.files).state_dict()
    assert all(torch.equal(stored[key], value) for key, value in module.state_dict().items())

    # The same by its id, which the store now knows, and by its choices.
    by_id = result_of(store, submit(store, architecture=winner.architecture_id, seed=1))
    assert by_id["chain"] == chain.id
    choices = list(architecture.choices)
    by_choices = result_of(store, submit(store, space=SPACE, choices=choices, seed=1))
    assert by_choices["chain"] == chain.id


def test_a_chain_is_trained_on_from_its_weights_or_from_scratch(
    store: Store, worker: EmbeddedWorker
) -> None:
    parent = result_of(store, submit(store, space=SPACE, genotype=GENOTYPE, seed=2))["chain"]
    tuned = result_of(store, submit(store, chain=parent[:16], recipe=SHORT | {"lr": 1e-9}, seed=2))
    fresh = result_of(store, submit(store, chain=parent, from_scratch=True, seed=2))
    assert fresh["chain"] == parent  # the same seed, data and recipe give the same network
    chain = store.blocks.chain(tuned["chain"])
    assert chain.id != parent
    edges = {(edge.parent, edge.relation) for edge in store.blocks.lineage(chain.id)}
    assert (parent, "trained-from") in edges
    assert chain.card["trained_from"] == [parent]
    assert chain.card["genotype"] == GENOTYPE
    before = load_chain(store.blocks.chain(parent), store.files)
    after = load_chain(chain, store.files)
    weights = zip(before.parameters(), after.parameters(), strict=True)
    assert all(bool((a - b).abs().max() < 1e-6) for a, b in weights)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"chain": "nobody"}, "no chain"),
        ({"architecture": "0" * 64}, "no job of yours has met an architecture"),
        ({"architecture": {"space": "darts"}}, "not of the form"),
        ({"space": SPACE, "genotype": "normal: none"}, "is not of the form"),
        ({"space": SPACE, "choices": [9] * 6}, "9"),
        ({"space": TOY, "genotype": "7"}, "reads no genotypes; give choices"),
    ],
)
def test_what_cannot_be_trained_fails_and_says_why(
    store: Store, worker: EmbeddedWorker, request_: dict[str, Any], said: str
) -> None:
    job = toys.finished(store, submit(store, **request_).id)
    assert job.state is JobState.FAILED
    assert said in str(job.reason)


def test_a_cancelled_training_stops_within_seconds(store: Store, worker: EmbeddedWorker) -> None:
    recipe = LONG | {"epochs": 10_000}
    job = submit(store, space=TOY, choices=[0, 0], recipe=recipe, seed=4)
    wait_for(lambda: store.jobs.job(job.id).progress.get("metrics"), what="an epoch")
    store.jobs.request(job.id, JobRequest.CANCEL)
    ended = toys.finished(store, job.id, timeout_s=10)
    assert ended.state is JobState.CANCELLED
    assert ended.progress["phase"] == "train"
    metrics = [it.data for it in store.jobs.events(job.id) if it.data.get("kind") == "metrics"]
    assert metrics[0]["phase"] == "train"
    assert "loss" in metrics[0]["metrics"]  # type: ignore[operator]


def test_a_search_goes_on_in_the_middle_of_a_candidate_and_of_a_winner(
    store: Store, worker: EmbeddedWorker
) -> None:
    recipes: dict[str, Any] = {"recipe": LONG, "final_recipe": LONG | {"epochs": 60}}
    spec = toys.search(candidates=1, seed=5, reuse=False, space={"widths": [7]}, **recipes)
    job = store.jobs.submit(JobKind.SEARCH, spec)
    for arm in ("search", "winner"):
        wait_for(lambda arm=arm: kept_epoch(store, job, arm) > 0, what=f"an epoch of {arm}")
        kill(worker)
    ended = toys.succeeded(store, job.id, timeout_s=150.0)
    assert sum("trying again from the last epoch" in line for line in said(store, job)) == 2

    data = load_dataset("digits", root=None, seed=SPLIT_SEED)
    scored, winner = store.jobs.candidates(ended.id)
    assert (scored.arm, winner.arm) == (Arm.SEARCH, Arm.WINNER)
    architecture = Architecture.from_json(scored.architecture)
    space, cpu = space_of(architecture), torch.device("cpu")
    undisturbed = train_and_score(space, architecture, data, Recipe(**LONG), seed=5, device=cpu)
    assert scored.metrics["accuracy"] == undisturbed["accuracy"]
    module = fresh_network(space, architecture, data, seed=5)
    train(module, data, Recipe.model_validate(recipes["final_recipe"]), device=cpu, seed=5)
    stored = load_chain(store.blocks.chain(str(winner.chain)), store.files).state_dict()
    assert all(torch.equal(stored[key], value) for key, value in module.state_dict().items())


def test_the_command_line_trains_a_genotype_and_then_its_chain(
    store: Store, url: str, worker: EmbeddedWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    def blockyard(*words: str) -> Any:
        capsys.readouterr()
        code = run(["--url", url, "train", *words, "--data", "digits", "--json"])
        told = capsys.readouterr()
        assert code == 0, told.err
        return json.loads(told.out)

    space = ["--space", "darts", "-s", "cells=1", "-s", "channels=2", "-s", "nodes=1"]
    short = ["--recipe", "darts-cifar", "--epochs", "1", "-r", "batch_size=256", "-r", "cutout=2"]
    first = blockyard(*space, "--genotype", GENOTYPE, *short, "--alias", "clid", "--seed", "6")
    assert first["kind"] == "train"
    assert first["state"] == "succeeded"
    recipe = first["spec"]["recipe"]
    assert (recipe["schedule"], recipe["auxiliary"], recipe["cutout"]) == ("cosine-epoch", 0.4, 2)
    chain = store.blocks.chain("clid")
    assert chain.id == first["result"]["chain"]
    assert first["result"]["summary"] == GENOTYPE
    assert chain.num_params == first["result"]["metrics"]["num_params"]

    second = blockyard("--chain", "clid", "--epochs", "1", "-r", "batch_size=256")
    assert second["result"]["chain"] != chain.id
    edges = store.blocks.lineage(second["result"]["chain"])
    assert (chain.id, "trained-from") in {(edge.parent, edge.relation) for edge in edges}


def test_a_chain_for_other_classes_gets_a_fresh_last_block() -> None:
    space = make_space("darts", SPACE["params"])
    architecture = space.parse(GENOTYPE)  # type: ignore[attr-defined]
    head = space.blocks(architecture, inputs=TensorSpec(shape=(1, 8, 8)), num_classes=10)[-1]
    assert with_classes(head, 10) is head
    assert (
        with_classes(head, 7)
        == space.blocks(architecture, inputs=TensorSpec(shape=(1, 8, 8)), num_classes=7)[-1]
    )
    with pytest.raises(IncompatibleShapeError, match="ends in logits"):
        with_classes(
            space.blocks(architecture, inputs=TensorSpec(shape=(1, 8, 8)), num_classes=7)[0], 10
        )
