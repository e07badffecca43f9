"""What a request holds until its answers have begun: its places in the queue, and the pixels of its images."""

from __future__ import annotations

from service.fairness.budget import Holding

__all__ = ["Reservation"]


class Reservation:
    """Holdings of a request with a number of answers; `places` has one unit for each."""

    def __init__(self, answers: int, places: Holding | None) -> None:
        self._answers = answers
        self._places = places
        self._pixels: Holding | None = None

    def hold_pixels(self, pixels: Holding) -> None:
        """Hold these, too, until the last answer has begun: then the engine has the features of the images."""
        self._pixels = pixels

    def started(self) -> None:
        """Record that one more answer has begun."""
        self._answers -= 1
        if self._places is not None:
            self._places.give_back(1)
        if not self._answers:
            self.release()

    def release(self) -> None:
        """Give back what is still held."""
        for holding in (self._places, self._pixels):
            if holding is not None:
                holding.give_back()
