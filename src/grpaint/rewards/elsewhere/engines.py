"""Readers of text in images, for a worker process: loaded by path under its interpreter, where grpaint need not be.

Each is ``text_of(image) -> str`` of a PIL image, over a program or package that must be installed there.
"""

from __future__ import annotations

import functools
import io
import subprocess
from typing import Any


def tesseract(image: Any) -> str:
    """Through the ``tesseract`` program (Debian: apt install tesseract-ocr), English, text anywhere in the image."""
    into = io.BytesIO()
    image.save(into, "PNG")
    words = ["tesseract", "stdin", "stdout", "-l", "eng", "--psm", "11"]
    done = subprocess.run(words, input=into.getvalue(), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError("tesseract: " + done.stderr.decode("utf-8", "replace")[-200:])
    return " ".join(done.stdout.decode("utf-8", "replace").split())


@functools.lru_cache(maxsize=1)
def _easyocr() -> Any:
    import easyocr

    return easyocr.Reader(["en"])


def easyocr(image: Any) -> str:
    """Through easyocr, English; lines in its order."""
    import numpy

    return " ".join(text for _, text, _ in _easyocr().readtext(numpy.asarray(image)))


@functools.lru_cache(maxsize=1)
def _paddleocr() -> Any:
    import paddleocr

    return paddleocr.PaddleOCR(lang="en")


def paddleocr(image: Any) -> str:
    """Through paddleocr 3, English; lines in its order."""
    import numpy

    return " ".join(text for page in _paddleocr().predict(numpy.asarray(image)) for text in page["rec_texts"])
