"""The handlers of the TFLite writer."""

from amc.export.registry import Registry

handles = Registry()
