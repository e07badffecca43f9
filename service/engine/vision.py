"""What the vision tower sees in a picture, computed once for each distinct one.

It runs beside the engine's steps, in the thread that prepares a request: a large picture takes the tower as long as
many steps, and those who are being answered shall not wait for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from service.engine.prompt import Picture

__all__ = ["Vision"]


class Vision:
    """The vision tower and the features of the pictures seen last, of `cache_bytes` at most."""

    def __init__(self, model: Any, *, cache_bytes: int) -> None:
        self._encode = model.model.get_image_features
        self._device = model.device
        self._stream: Any = torch.Stream(self._device) if self._device.type == "cuda" else None
        self._known: OrderedDict[bytes, Any] = OrderedDict()
        self._most = self._room = cache_bytes
        self._lock = threading.Lock()
        self.computed = 0

    def features(self, pictures: Sequence[Picture]) -> Any:
        """Return the features of all pictures in a row, (image tokens, hidden), on the device; None without any.

        One caller at a time runs the tower, so that nobody computes what another is about to know.
        """
        if not pictures:
            return None
        with self._lock, torch.inference_mode(), self._stream or nullcontext():
            features = torch.cat([self._look(picture) for picture in pictures])
            if self._stream:
                self._stream.synchronize()
        return features

    def renew(self, change: Callable[[], None]) -> None:
        """Run `change`, which gives the tower other weights, and forget what it saw with the old ones."""
        with self._lock:
            self._known.clear()
            self._room = self._most
            change()

    def _look(self, picture: Picture) -> Any:
        if picture.digest in self._known:
            self._known.move_to_end(picture.digest)
            return self._known[picture.digest]
        pixels, grid = picture.pixels.to(self._device), picture.grid.to(self._device)
        [features] = self._encode(pixels, grid, return_dict=True).pooler_output
        self.computed += 1
        self._remember(picture.digest, features)
        return features

    def _remember(self, digest: bytes, features: Any) -> None:
        size = features.numel() * features.element_size()
        self._known[digest] = features
        self._room -= size
        while self._room < 0:  # in the end even the newest, where it alone is too large
            _, oldest = self._known.popitem(last=False)
            self._room += oldest.numel() * oldest.element_size()
