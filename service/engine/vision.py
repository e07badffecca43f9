"""Image features from the vision tower, with a cache by image digest.

The tower runs in the thread that prepares a request, not in the engine thread: a large image takes as long as many
steps, which would delay all running requests.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from service.engine.prompt import PromptImage

if TYPE_CHECKING:
    from transformers import Glm4vForConditionalGeneration

__all__ = ["VisionEncoder"]


class VisionEncoder:
    """The vision tower and an LRU cache of image features of at most `cache_bytes` bytes."""

    def __init__(self, model: Glm4vForConditionalGeneration, *, cache_bytes: int) -> None:
        self._get_image_features = model.model.get_image_features
        self._device: torch.device = model.device
        self._stream = torch.Stream(self._device) if self._device.type == "cuda" else None
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()
        self._capacity = self._free = cache_bytes
        self._lock = threading.Lock()
        self.computed = 0  # images that were not in the cache
        self.reused = 0  # those that were

    def features(self, images: Sequence[PromptImage]) -> Tensor | None:
        """Return the concatenated features of the images, (image tokens, hidden), on the device; None without images.

        Only one thread at a time runs the tower, so that concurrent requests with the same image compute it once.
        """
        if not images:
            return None
        with self._lock, torch.inference_mode(), self._stream or nullcontext():
            features = torch.cat([self._features_of(image) for image in images])
            if self._stream:
                self._stream.synchronize()
                # a step may read them still when they are freed, if its request was cancelled
                features.record_stream(torch.cuda.default_stream(self._device))
        return features

    def replace_weights(self, replace: Callable[[], None]) -> None:
        """Call `replace`, which changes the tower's weights, while no image is encoded; clears the cache."""
        with self._lock:
            self._cache.clear()
            self._free = self._capacity
            replace()

    def _features_of(self, image: PromptImage) -> Tensor:
        if image.digest in self._cache:
            self.reused += 1
            self._cache.move_to_end(image.digest)
            return self._cache[image.digest]
        pixels, grid = image.pixels.to(self._device), image.grid.to(self._device)
        features: Tensor
        [features] = self._get_image_features(pixels, grid, return_dict=True).pooler_output
        self.computed += 1
        self._store(image.digest, features)
        return features

    def _store(self, digest: bytes, features: Tensor) -> None:
        self._cache[digest] = features
        self._free -= features.nbytes
        while self._free < 0:  # may also evict the new entry, if it alone exceeds the capacity
            _, oldest = self._cache.popitem(last=False)
            self._free += oldest.nbytes
