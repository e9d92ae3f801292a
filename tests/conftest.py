"""Tests run side by side, one process a core (pytest-xdist), so each keeps to one thread of torch's."""

import torch

torch.set_num_threads(1)
