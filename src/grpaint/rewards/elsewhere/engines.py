"""OCR engines for a worker process, whose interpreter loads this file by path and need not have grpaint.

Each is a function ``text_of(image) -> str`` of a PIL image. Its program or package must be installed for that
interpreter.
"""

from __future__ import annotations

import functools
import io
import subprocess
from typing import Any


def tesseract(image: Any) -> str:
    """Read English text anywhere in the image by the ``tesseract`` program (Debian: apt install tesseract-ocr)."""
    png = io.BytesIO()
    image.save(png, "PNG")
    command = ["tesseract", "stdin", "stdout", "-l", "eng", "--psm", "11"]
    process = subprocess.run(command, input=png.getvalue(), capture_output=True, check=False)
    if process.returncode:
        raise RuntimeError("tesseract: " + process.stderr.decode("utf-8", "replace")[-200:])
    return " ".join(process.stdout.decode("utf-8", "replace").split())


@functools.lru_cache(maxsize=1)
def _easyocr() -> Any:
    import easyocr

    return easyocr.Reader(["en"])


def easyocr(image: Any) -> str:
    """Read English text by easyocr; lines in its order."""
    import numpy

    return " ".join(text for _, text, _ in _easyocr().readtext(numpy.asarray(image)))


@functools.lru_cache(maxsize=1)
def _paddleocr() -> Any:
    import paddleocr

    return paddleocr.PaddleOCR(lang="en")


def paddleocr(image: Any) -> str:
    """Read English text by paddleocr 3; lines in its order."""
    import numpy

    return " ".join(text for page in _paddleocr().predict(numpy.asarray(image)) for text in page["rec_texts"])
