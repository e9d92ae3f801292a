"""The account: multiply-adds and DRAM bytes of a method, counted from what it really keeps on real inputs."""

from dynattn.account.attention import MEGABYTE, of_call, of_mixing, of_pairs
from dynattn.account.model import Account, counting, of_model
from dynattn.account.pruned import of_forward
from dynattn.account.work import Work

__all__ = ["MEGABYTE", "Account", "Work", "counting", "of_call", "of_forward", "of_mixing", "of_model", "of_pairs"]
