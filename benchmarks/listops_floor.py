"""Record what the first token alone gives on ListOps at the published lengths; see docs/lra.md.

python benchmarks/listops_floor.py
"""

from __future__ import annotations

from pathlib import Path

from dynattn.lab.lra.baselines import first_token
from dynattn.lab.lra.listops import Rules, load
from dynattn.lab.machine import machine
from dynattn.lab.records import write_json

TRAIN, TEST, SEED = 6000, 2000, 0
RECORD = Path(__file__).parent / "results" / "listops-floor.json"


def main() -> None:
    """Half a minute."""
    data = load(Rules(), TRAIN, TEST, SEED)
    found = {"data": data.source, "train": TRAIN, "test": TEST, "accuracy": first_token(data), "machine": machine()}
    write_json(RECORD, found)
    print(f"{found['accuracy']:.1%} of {TEST} {data.source}")


if __name__ == "__main__":
    main()
