"""What a trainer can be asked to do; every duty takes and returns JSON and bytes."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch
from torch import nn

from nas import checkpoint
from nas.cost import cost, preview
from nas.data import DataSet, load_dataset
from nas.evaluation import EvaluatorContext, Latency
from nas.identity import identify
from nas.plugins import (
    MethodContext,
    make_evaluator,
    make_method,
    make_space,
    method_class,
    space_of,
)
from nas.protocols import SearchMethod, SearchSpace, StepReport
from nas.training import accuracy, train
from serving.runners.devices import SERVING_THREADS, serving_threads, settle_threads
from serving.runners.measure import Timing, measure
from serving.runners.onnx_export import export_onnx
from serving.runners.onnx_runner import OnnxRunner
from serving.runners.protocols import BlockRunner
from serving.runners.torch_runner import TorchRunner
from workers import cost_duties, training_duties
from workers.training_duties import Curve, StateKeeper
from workers.wire import Message
from zoo.builders import ChainModule, build_chain
from zoo.canonical import content_id, plain
from zoo.errors import ConflictError, UnknownNameError
from zoo.schemas import Limit, Recipe
from zoo.spec import Architecture, BlockSpec, TensorSpec
from zoo.weights import unpack

SPLIT_SEED = 0
"""Seed of every data set's splits: one for all jobs, so that no image on which one network
trained is ever used to judge another, or a recombination of both."""

TIMED_STEPS = 8
"""Training steps from which a preview estimates a candidate's time."""

PREVIEW_CLIMBS = 24
"""Mutations tried towards the least and towards the greatest network of a space."""

Json = dict[str, Any]
Blobs = tuple[bytes, ...]


class Report(Protocol):
    """Sends progress upwards, and states of a training under way."""

    def __call__(self, *, done: int, total: int, message: str, **metrics: float) -> None: ...

    def keep(self, state: bytes, *, epoch: int) -> None: ...


class Duties:
    """The requests of one worker, one at a time; a gradient method lives here between them."""

    def __init__(self, *, data_root: str | None, progress: Report) -> None:
        self._root = Path(data_root) if data_root else None
        self._report = progress
        self._method: SearchMethod | None = None
        self._curve: Curve = {}
        settle_threads()
        self._load = lru_cache(maxsize=2)(self._load_uncached)

    def perform(self, call: str, args: Mapping[str, Any], blobs: Blobs) -> Message:
        """Do one duty.

        Raises:
            UnknownNameError: There is no such duty.
        """
        duties = {
            "facts": self.facts,
            "signature": self.signature,
            "cost": self.cost,
            "evaluator": self.evaluator,
            "evaluate": self.evaluate,
            "measure": self.measure,
            "latencies": self.latencies,
            "profile": self.profile,
            "fit": self.fit,
            "accuracy": self.accuracy,
            "export": self.export,
            "preview": self.preview,
            "operations": self.operations,
            "time_operations": self.time_operations,
            "time_network": self.time_network,
            "open": self.open,
            "steps": self.steps,
            "best": self.best,
            "state": self.state,
            "restore": self.restore,
            "close": self.close,
        }
        if call not in duties:
            raise UnknownNameError("trainer duty", call, duties)
        return duties[call](dict(args), blobs)

    def facts(self, args: Json, _: Blobs) -> Message:
        """Describe a data set: what a card and an evaluation's key say of it."""
        data = self._data(args)
        return Message(
            {
                "kind": "facts",
                "name": data.name,
                "digest": data.digest,
                "num_classes": data.num_classes,
                "class_names": list(data.class_names),
                "licence": data.licence,
                "inputs": data.inputs.to_json(),
                "mean": list(data.mean),
                "std": list(data.std),
                "sizes": {name: len(getattr(data, name)) for name in ("train", "val", "test")},
            }
        )

    def signature(self, args: Json, _: Blobs) -> Message:
        """Hash what an architecture computes, and the description of what is built of it."""
        space, architecture, data = self._candidate(args)
        task: Any = {"inputs": data.inputs, "num_classes": data.num_classes}
        found = identify(space, architecture, **task)
        blocks = [spec.to_json() for spec in space.blocks(architecture, **task)]
        head = {
            "kind": "signature",
            "signature": found.signature.key,
            "alternates": list(found.signature.alternates),
            "proof": found.proof.to_json(),
            "network": content_id(plain(blocks)),
        }
        return Message(head)

    def cost(self, args: Json, _: Blobs) -> Message:
        """Count what an architecture costs, untrained."""
        space, architecture, data = self._candidate(args)
        module = space.build(architecture, inputs=data.inputs, num_classes=data.num_classes)
        return Message({"kind": "cost", "metrics": cost(module, data.inputs).metrics()})

    def evaluator(self, args: Json, _: Blobs) -> Message:
        """Describe an evaluator: all that determines its scores, and of what nature they are."""
        context = self._evaluator_context(args)
        evaluator = make_evaluator(args["evaluator"]["name"], args["evaluator"]["params"], context)
        nature = {name: bool(getattr(evaluator, name, False)) for name in ("looks_up", "noisy")}
        return Message({"kind": "evaluator", "describe": evaluator.describe(), **nature})

    def evaluate(self, args: Json, blobs: Blobs) -> Message:
        """Score one architecture; latency is the worker's to measure, and is not among it.

        With ``args["resume"]`` the one blob is a state of its training to go on from.
        """
        resume = training_duties.kept_state(args, blobs, self._curve)
        started = time.monotonic() - (resume["cost_s"] if resume else 0.0)
        context = dataclasses.replace(
            self._evaluator_context(args),
            resume=resume,
            keep=self._keeper(args, to_the_last=False),
        )
        evaluator = make_evaluator(args["evaluator"]["name"], args["evaluator"]["params"], context)
        found = evaluator.evaluate(Architecture.from_json(args["architecture"]))
        head = {
            "kind": "evaluation",
            "metrics": dict(found.metrics),
            "cost_s": time.monotonic() - started,
            "curve": self._curve,
        }
        return Message(head)

    def measure(self, args: Json, _: Blobs) -> Message:
        """Time an architecture with fresh weights."""
        space, architecture, data = self._candidate(args)
        specs = space.blocks(architecture, inputs=data.inputs, num_classes=data.num_classes)
        module = build_chain(specs, seed=0)
        timing = self._time(module, specs, args["runtime"], args["batch"], args["device"], None)
        return Message({"kind": "timing", **timing_json(timing)})

    def latencies(self, args: Json, _: Blobs) -> Message:
        """Time the layers of a space, as the method that will search it wants them.

        Given ``prices`` of operations, layers are priced by their sum instead.
        """
        space, data, count = make_space(**args["space"]), self._data(args), 0
        prices: Mapping[str, float] | None = args.get("prices")

        def layer_ms(specs: Sequence[BlockSpec]) -> float:
            nonlocal count
            count += 1
            self._report(done=count, total=0, message=f"measuring layer {count}")
            module = build_chain(specs, seed=0)
            if prices is not None:
                return cost_duties.priced(module, specs[0].inputs[0], args["batch"], prices)
            timing = self._time(module, specs, args["runtime"], args["batch"], args["device"], None)
            return timing.median_ms

        cls: Any = method_class(args["method"])
        found = cls.measure_latencies(
            space, layer_ms, inputs=data.inputs, num_classes=data.num_classes
        )
        return Message({"kind": "latencies", "latencies": found})

    def profile(self, args: Json, blobs: Blobs) -> Message:
        """Time a trained chain (or one block) in every runtime at every batch size.

        ``blobs`` are the blocks' weights and, if ``onnx`` is set, the chain's ONNX file.
        """
        specs = [BlockSpec.from_json(item) for item in args["specs"]]
        onnx = blobs[len(specs)] if args["onnx"] else None
        module = _chain_of(specs, blobs)
        if "onnx" in args["runtimes"] and onnx is None:
            onnx = export_onnx(module, specs[0].inputs, specs[-1].outputs)
        timings = [
            {"runtime": runtime, "batch": batch, "precision": "float32"}
            | timing_json(self._time(module, specs, runtime, batch, args["device"], onnx))
            for runtime in args["runtimes"]
            for batch in args["batches"]
        ]
        return Message({"kind": "timings", "timings": timings})

    def fit(self, args: Json, blobs: Blobs) -> Message:
        """Train an architecture, or the blocks of ``specs``; see ``training_duties.fit``."""
        if "specs" in args:
            data = self._data(args)
            specs = tuple(BlockSpec.from_json(item) for item in args["specs"])
        else:
            space, architecture, data = self._candidate(args)
            specs = space.blocks(architecture, inputs=data.inputs, num_classes=data.num_classes)
        epochs = int(args["recipe"]["epochs"])
        return training_duties.fit(
            specs,
            data,
            args,
            blobs,
            curve=self._curve,
            progress=self._epochs,
            keep=self._keeper(args, to_the_last=True),
            exporting=lambda: self._report(done=epochs, total=epochs, message="exporting"),
        )

    def accuracy(self, args: Json, blobs: Blobs) -> Message:
        """Score a chain on the splits named."""
        specs = [BlockSpec.from_json(item) for item in args["specs"]]
        device = torch.device(args["device"])
        data = self._data(args).to(device)
        module = _chain_of(specs, blobs).to(device)
        scores = {name: accuracy(module, data, getattr(data, name)) for name in args["splits"]}
        return Message({"kind": "accuracy", "scores": scores, "digest": data.digest})

    def export(self, args: Json, blobs: Blobs) -> Message:
        """Return a chain's ONNX file, checked against torch."""
        specs = [BlockSpec.from_json(item) for item in args["specs"]]
        onnx = export_onnx(_chain_of(specs, blobs), specs[0].inputs, specs[-1].outputs)
        return Message({"kind": "exported"}, (onnx,))

    def preview(self, args: Json, _: Blobs) -> Message:
        """Describe what a search would span, and time a few epochs' worth of one candidate."""
        space = make_space(args["space"]["name"], args["space"]["params"])
        data = self._data(args)

        def latency(architecture: Architecture) -> Latency:
            if (prices := args["prices"]) is not None:
                ms = cost_duties.network_ms(space, architecture, data, args["batch"], prices)
                return Latency(median_ms=ms, p95_ms=ms, device=args["device"])
            specs = space.blocks(architecture, inputs=data.inputs, num_classes=data.num_classes)
            module = build_chain(specs, seed=0)
            timing = self._time(module, specs, args["runtime"], args["batch"], args["device"], None)
            return Latency(median_ms=timing.median_ms, p95_ms=timing.p95_ms, device=args["device"])

        found = preview(
            space,
            data.inputs,
            data.num_classes,
            latency,
            args["samples"],
            args["seed"],
            limits=[Limit.model_validate(item) for item in args["limits"]],
            climbs=PREVIEW_CLIMBS,
        )
        head = {
            "kind": "preview",
            "size": found.size,
            "cost": {name: asdict(spread) for name, spread in found.cost.items()},
            "feasible": found.feasible,
            "feasible_share": found.feasible_share,
            "reason": found.reason,
            "candidate_s": self._candidate_seconds(space, data, args),
        }
        return Message(head)

    def _candidate_seconds(self, space: SearchSpace, data: DataSet, args: Json) -> float:
        """Estimate a candidate's training time from the first steps of one."""
        recipe = Recipe.model_validate(args["recipe"])
        device = torch.device(args["device"])
        architecture = space.sample(random.Random(args["seed"]))
        moments: list[float] = []

        def stop() -> bool:
            moments.append(time.monotonic())
            return len(moments) > TIMED_STEPS

        module = space.build(architecture, inputs=data.inputs, num_classes=data.num_classes)
        train(module, data, recipe, device=device, seed=args["seed"], should_stop=stop)
        steps = [after - before for before, after in pairwise(moments)]
        per_epoch = max(1, len(data.train) // recipe.batch_size)
        return median(steps or [0.0]) * per_epoch * recipe.epochs

    def operations(self, args: Json, _: Blobs) -> Message:
        """List the distinct operations of a space, or of given architectures."""
        space = make_space(args["space"]["name"], args["space"]["params"])
        return cost_duties.operations(space, self._data(args), args)

    def time_operations(self, args: Json, _: Blobs) -> Message:
        """Time operations one by one."""
        return cost_duties.time_operations(args)

    def time_network(self, args: Json, _: Blobs) -> Message:
        """Time a whole untrained network and meter its energy."""
        space, _architecture, data = self._candidate(args)
        return cost_duties.time_network(space, data, args)

    def open(self, args: Json, _: Blobs) -> Message:
        """Build a method that trains; it stays here until ``close``."""
        device = torch.device(args["device"])
        space = make_space(args["space"]["name"], args["space"]["params"])
        context = MethodContext(
            space=space,
            seed=args["seed"],
            device=device,
            data=self._data(args).to(device),
            objectives=tuple(args["objectives"]),
            limits=tuple(Limit.model_validate(item) for item in args["limits"]),
            latencies=args.get("latencies"),
        )
        self._method = make_method(args["method"]["name"], args["method"]["params"], context)
        return Message({"kind": "opened"})

    def steps(self, args: Json, _: Blobs) -> Message:
        """Step the method for about ``seconds``, at least once, at most to its end.

        The last step's report has the latest value of every metric: not every step has all.
        """
        method = self._opened()
        started = time.monotonic()
        count, metrics = 0, dict[str, float]()
        while True:
            report = method.step()
            count += 1
            metrics |= report.metrics
            if report.done or time.monotonic() - started >= args["seconds"]:
                found = report_json(dataclasses.replace(report, metrics=metrics))
                return Message({"kind": "report", "count": count, **found})

    def best(self, args: Json, _: Blobs) -> Message:
        found = self._opened().best(args["k"])
        return Message({"kind": "best", "architectures": [item.to_json() for item in found]})

    def state(self, _args: Json, _: Blobs) -> Message:
        return Message({"kind": "state"}, (checkpoint.pack(self._opened().state_dict()),))

    def restore(self, _args: Json, blobs: Blobs) -> Message:
        self._opened().load_state_dict(checkpoint.unpack(blobs[0]))
        return Message({"kind": "restored"})

    def close(self, _args: Json, _: Blobs) -> Message:
        """Forget the method and give its memory back."""
        self._method = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Message({"kind": "closed"})

    def _opened(self) -> SearchMethod:
        if self._method is None:
            raise ConflictError("no method is open in this trainer; open one and restore its state")
        return self._method

    def _data(self, args: Json) -> DataSet:
        return self._load(args["data"])

    def _load_uncached(self, name: str) -> DataSet:
        return load_dataset(name, root=self._root, seed=SPLIT_SEED)

    def _candidate(self, args: Json) -> tuple[SearchSpace, Architecture, DataSet]:
        architecture = Architecture.from_json(args["architecture"])
        return space_of(architecture), architecture, self._data(args)

    def _evaluator_context(self, args: Json) -> EvaluatorContext:
        return EvaluatorContext(
            space=make_space(args["space"]["name"], args["space"]["params"]),
            data=self._data(args),
            recipe=Recipe.model_validate(args["recipe"]),
            seed=args["seed"],
            device=torch.device(args["device"]),
            progress=self._epochs,
            data_root=self._root,
        )

    def _keeper(self, args: Json, *, to_the_last: bool) -> StateKeeper:
        every_s = args["checkpoint_s"]
        return StateKeeper(self._report.keep, self._curve, every_s=every_s, to_the_last=to_the_last)

    def _epochs(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        for name, value in {"epoch": done, **metrics}.items():
            self._curve.setdefault(name, []).append(value)
        self._report(done=done, total=total, message=f"epoch {done} of {total}", **metrics)

    def _time(
        self,
        module: nn.Module,
        specs: Sequence[BlockSpec],
        runtime: str,
        batch: int,
        device: str,
        onnx: bytes | None,
    ) -> Timing:
        inputs, outputs = specs[0].inputs, specs[-1].outputs
        runner = _runner(module, inputs, outputs, runtime, device, onnx)
        try:
            with serving_threads():
                return measure(runner, inputs, batch=batch)
        finally:
            runner.close()


def timing_json(timing: Timing) -> Json:
    """Return a timing as JSON."""
    return {
        "median_ms": timing.median_ms,
        "p95_ms": timing.p95_ms,
        "samples": list(timing.samples),
        "peak_bytes": timing.peak_bytes,
    }


def report_json(report: StepReport) -> Json:
    """Return what the worker needs of a step's report; methods that train score nothing."""
    return {
        "step": report.step,
        "total": report.total,
        "message": report.message,
        "metrics": dict(report.metrics),
    }


def _runner(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    runtime: str,
    device: str,
    onnx: bytes | None,
) -> BlockRunner:
    if runtime == "torch":
        return TorchRunner(module, inputs, outputs, device=device)
    if runtime == "onnx":
        data = export_onnx(module, inputs, outputs) if onnx is None else onnx
        return OnnxRunner(data, inputs, outputs, device=device, threads=SERVING_THREADS)
    raise UnknownNameError("runtime", runtime, ("torch", "onnx"))


def _chain_of(specs: Sequence[BlockSpec], blobs: Blobs) -> ChainModule:
    module = build_chain(specs, seed=0)
    for block, blob in zip(module, blobs, strict=False):
        block.load_state_dict(unpack(blob))
    return module.eval()
