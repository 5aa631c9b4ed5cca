"""The six networks behind Blockyard's own server, from a zoo on disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from serving.api import ApiSettings, create_app, serve
from serving.engine import EngineLimits
from serving.hosting import host_engine
from support import vision
from zoo.spec import Chain
from zoo.store import open_store
from zoo.weights import block_of


def fill(url: str, *, cells: int, seed: int) -> None:
    """Put the variants into a new zoo, under their names."""
    store = open_store(url)
    for name, (specs, network) in vision.networks(cells=cells, seed=seed).items():
        blocks = tuple(
            block_of(spec, module, store.files) for spec, module in zip(specs, network, strict=True)
        )
        for block in blocks:
            store.blocks.put_block(block)
        store.blocks.set_alias(name, store.blocks.put_chain(Chain(blocks=blocks)))
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", required=True)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--runtime", choices=("torch", "onnx"), required=True)
    parser.add_argument("--lanes", type=int, required=True)
    parser.add_argument("--max-batch", type=int, required=True)
    options = parser.parse_args()
    store = open_store(options.db, files=options.files)
    engine = host_engine(
        options.device,
        limits=EngineLimits(max_batch=options.max_batch),
        runtime=options.runtime,
        lanes=options.lanes,
    )
    settings = ApiSettings(port=options.port)
    serve(create_app(settings, store, queue=None, engine=engine), settings)
    engine.close()
    store.close()


if __name__ == "__main__":
    main()
