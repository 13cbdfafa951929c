"""What a network is for: its data, its loss and the score that a search raises."""

from amc.tasks.base import ModelCheck, OwnCompressors, Task, save_own_files, score_and_further
from amc.tasks.classification import ClassificationTask
from amc.tasks.detection import DetectionTask
from amc.tasks.registry import load_task
from amc.tasks.retrieval import RetrievalTask

__all__ = [
    "ClassificationTask",
    "DetectionTask",
    "ModelCheck",
    "OwnCompressors",
    "RetrievalTask",
    "Task",
    "load_task",
    "save_own_files",
    "score_and_further",
]
