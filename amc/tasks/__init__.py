"""What a network is for: its data, its loss and the score that a search raises."""

from amc.tasks.base import Task
from amc.tasks.classification import ClassificationTask
from amc.tasks.registry import load_task

__all__ = ["ClassificationTask", "Task", "load_task"]
