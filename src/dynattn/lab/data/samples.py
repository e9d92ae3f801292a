"""Two photographs and handwritten digits that scikit-learn carries, and how a picture is resized."""

from __future__ import annotations

import numpy as np
import torch

from dynattn.lab.data.packages import DataMissingError


def photographs() -> list[np.ndarray]:
    """Two photographs, (height, width, 3) uint8.

    Raises:
        DataMissingError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise DataMissingError(
            "photographs: scikit-learn must be installed, which carries them: run: pip install scikit-learn"
        ) from error
    return [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 handwritten digits, (1797, 8, 8) float64 from 0 to 16, and (1797,) what each shows.

    Raises:
        DataMissingError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataMissingError(
            "digits: scikit-learn must be installed, which carries the pictures: run: pip install 'dynattn[evals]'"
        ) from error
    pixels, shown = load_digits(return_X_y=True)
    return np.reshape(pixels, (-1, 8, 8)), np.asarray(shown)


def resize(picture: np.ndarray, size: int) -> np.ndarray:
    """(height, width, channels) uint8 to (size, size, channels), bilinear."""
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1).unsqueeze(0).float()
    x = torch.nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
