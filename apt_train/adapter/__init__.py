"""The trained adapter on the UNet: attached, switched off for the prior pass, read out, removed."""

from .adapter import ADAPTER, Adapter, RankByTimestep, adapter_of, add_adapter, check_no_adapter

__all__ = ["ADAPTER", "Adapter", "RankByTimestep", "adapter_of", "add_adapter", "check_no_adapter"]
