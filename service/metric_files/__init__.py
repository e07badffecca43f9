"""The directory that processes share their metrics in: a file of each process and type, and one of all that have ended.

prometheus_client defines the files. `allocation.py`: a process writes its own, of which every byte is allocated.
`collector.py`: a scrape reads all of them. `ended.py`: those of ended processes are merged, so that their number stays
small. `expiry.py`: which sums are kept. `directory.py`: the lock, the names, and which files count.
"""

from service.metric_files.allocation import install
from service.metric_files.collector import Collector
from service.metric_files.ended import merge_ended, remove_gauges

__all__ = ["Collector", "install", "merge_ended", "remove_gauges"]
