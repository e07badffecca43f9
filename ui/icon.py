"""The icon of the tab."""

from __future__ import annotations

from PIL import Image, ImageDraw

__all__ = ["page_icon"]


def page_icon() -> Image.Image:
    """Draw the icon of the tab, half blue and half green; Streamlit's icons would be loaded from the internet."""
    image = Image.new("RGBA", (64, 64))
    draw = ImageDraw.Draw(image)
    draw.pieslice((4, 4, 60, 60), 90, 270, fill="#1f6fb5")
    draw.pieslice((4, 4, 60, 60), 270, 90, fill="#2f8f5b")
    return image
