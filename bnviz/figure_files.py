"""Figures to the bytes of a file, which names where it comes from."""

from __future__ import annotations

import io
import json
import os
import shutil
from typing import Any
from xml.sax.saxutils import escape

import plotly.graph_objects as go
from PIL import Image, PngImagePlugin

from bnviz import style, webpage
from bnviz.store import StoreError
from bnviz.style import Drawn

FORMATS = ("html", "png", "svg", "pdf")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

WIDTH_PX = 1200
"""Of an image of a figure that is as wide as its screen."""


def browser() -> str | None:
    """The Chromium or Chrome of this machine."""
    return os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)


def to_file(drawn: Drawn, title: str, format: str, look: str, origin: dict[str, Any]) -> bytes:
    """A figure in one of FORMATS and one of the looks of `bnviz.style`.

    Args:
        origin: see `bnviz.tables.origin`; SVG and PNG hold it as JSON in their metadata, PDF in its
            subject.

    Raises:
        StoreError: the format needs a Chromium, and this machine has none.
    """
    figure = style.in_look(drawn, look)
    if format == "html":
        return webpage.render(title, [webpage.Part(content=figure)], origin)
    image = _image(figure, format)
    if format == "png":
        return _png_with(image, title, json.dumps(origin))
    if format == "svg":
        start = image.index(b">") + 1
        metadata = f"<metadata>{escape(json.dumps(origin))}</metadata>".encode()
        return image[:start] + metadata + image[start:]
    return _pdf_with(image, title, json.dumps(origin))


def _image(figure: go.Figure, format: str) -> bytes:
    """Drawn by Chromium."""
    from kaleido import errors  # here, as they take a third of a second, and the page opens without

    executable = browser()
    if executable is None:
        raise StoreError(
            f"writing {format} needs Chromium or Chrome, and none was found; install one (Debian: "
            "apt install chromium); html needs nothing, and the dashboard's buttons save PNG and "
            "SVG"
        )
    os.environ["BROWSER_PATH"] = executable
    width = figure.layout.width or WIDTH_PX
    scale = 2 if width == WIDTH_PX else style.PRINT_DPI / style.PX_PER_INCH
    try:
        return figure.to_image(format=format, width=width, scale=scale if format == "png" else 1)
    except (
        errors.BrowserClosedError,
        errors.BrowserFailedError,
        errors.ChromeNotFoundError,
        errors.KaleidoError,
    ) as error:
        raise StoreError(
            f"{executable} could not write {format}: {error}; html needs no browser"
        ) from error


def _png_with(image: bytes, title: str, origin: str) -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("Title", title)
    texts.add_itxt("Description", origin)
    file = io.BytesIO()
    Image.open(io.BytesIO(image)).save(file, "PNG", pnginfo=texts)
    return file.getvalue()


def _pdf_with(image: bytes, title: str, origin: str) -> bytes:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(image)))
    writer.add_metadata({"/Title": title, "/Subject": origin})
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()
