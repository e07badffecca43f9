"""What a scrape reads of the host: slots, generations and rollouts from the files of the contract, GPUs from NVML.

Every worker shows the same, whichever answers the scrape, and nothing of what is gone. `collector.py` has them all.
"""

from service.host_metrics.collector import HostCollector

__all__ = ["HostCollector"]
