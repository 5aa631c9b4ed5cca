"""Stronger augmentation than crops and flips: AutoAugment's policy for CIFAR.

Source:
    Cubuk et al. (2019), "AutoAugment", arXiv:1805.09501, as torchvision has it.
"""

from __future__ import annotations

from threading import Lock

import torch
from torch import Tensor

from zoo.compat import declare_torchvision_operators
from zoo.errors import EnvironmentUnfitError, InvalidInputError

_GENERATOR = Lock()


def auto_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change every image by a sub-policy of AutoAugment's for CIFAR-10, drawn for itself.

    Args:
        images: ``(batch, channels, height, width)`` uint8, of 1 or 3 channels.
        generator: On the CPU; gives one seed, from which everything else is drawn.

    Returns:
        Tensor of the same shape, type and device.

    Raises:
        EnvironmentUnfitError: torchvision is not installed.
        InvalidInputError: The images have another number of channels.
    """
    if images.shape[1] not in (1, 3):
        raise InvalidInputError(
            f"AutoAugment takes images of 1 or 3 channels, not {images.shape[1]}; switch it off"
        )
    declare_torchvision_operators()
    try:
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy
    except ImportError as error:
        raise EnvironmentUnfitError(
            f"AutoAugment needs torchvision, which cannot be imported: {error}; switch it off"
        ) from error
    policy = AutoAugment(AutoAugmentPolicy.CIFAR10)
    seed = int(torch.randint(2**62, (), generator=generator))
    # torchvision draws from the process's generator on the CPU, which threads share.
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([policy(image) for image in images])
