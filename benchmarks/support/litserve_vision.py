"""The six networks behind LitServe, batched, in the cheapest way it offers.

Bodies are raw bytes in both directions: one byte for the variant, then the image.
Annotations stay objects here (no ``from __future__``), since LitServe reads them.
"""

import argparse
from typing import Annotated, Any

import litserve
import numpy as np
import torch
from fastapi import Body, Response

from serving.runners.onnx_export import export_onnx
from serving.runners.onnx_runner import OnnxRunner
from serving.runners.protocols import BlockRunner
from serving.runners.torch_runner import TorchRunner
from support import vision
from zoo.spec import BlockSpec


class Variants(litserve.LitAPI):
    """All variants in one server: a batch is grouped by variant, each group run at once."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(max_batch_size=options.max_batch, batch_timeout=options.batch_timeout_s)
        self._options = options

    def setup(self, device: str) -> None:
        torch.set_num_threads(self._options.threads)
        self.runners = [
            self._runner(specs, network, device)
            for specs, network in vision.networks(
                cells=self._options.cells, seed=self._options.seed
            ).values()
        ]

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="application/octet-stream")]
    ) -> tuple[int, torch.Tensor]:
        array = np.frombuffer(bytearray(request[1:]), dtype=np.float32)
        return request[0], torch.from_numpy(array.reshape(1, *vision.INPUT.shape))

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, batch: Any) -> Any:
        if isinstance(batch, tuple):
            return self.runners[batch[0]].run((batch[1],))[0][0]
        answers: list[Any] = [None] * len(batch)
        groups: dict[int, list[int]] = {}
        for index, (variant, _) in enumerate(batch):
            groups.setdefault(variant, []).append(index)
        for variant, members in groups.items():
            images = torch.cat([batch[index][1] for index in members])
            (logits,) = self.runners[variant].run((images,))
            for index, row in zip(members, logits, strict=True):
                answers[index] = row
        return answers

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: torch.Tensor) -> Any:
        return Response(output.numpy().tobytes(), media_type="application/octet-stream")

    def _runner(
        self, specs: tuple[BlockSpec, ...], network: torch.nn.Module, device: str
    ) -> BlockRunner:
        inputs, outputs = specs[0].inputs, specs[-1].outputs
        if self._options.runtime == "torch":
            return TorchRunner(network, inputs, outputs, device=device)
        data = export_onnx(network, inputs, outputs)
        return OnnxRunner(data, inputs, outputs, device=device, threads=self._options.threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--runtime", choices=("torch", "onnx"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--max-batch", type=int, required=True)
    parser.add_argument("--batch-timeout-s", type=float, required=True)
    parser.add_argument("--cells", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    server = litserve.LitServer(
        Variants(options), accelerator=options.device, workers_per_device=options.workers
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        generate_client_file=False,
        pretty_logs=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
