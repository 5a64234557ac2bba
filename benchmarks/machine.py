"""Where and with what a figure was measured."""

import os
import platform
import sys
from importlib.metadata import version

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray")


def machine() -> dict[str, object]:
    """Processor, cores, memory and versions, for the file a benchmark writes."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "command": " ".join(["python", *sys.argv]),
    }
