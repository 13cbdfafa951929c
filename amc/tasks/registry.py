"""From a name on the command line to a task."""

from amc.data.images import ImageData
from amc.errors import UserError
from amc.plugins import call_factory, is_import_path, load_factory
from amc.tasks.base import Task
from amc.tasks.classification import ClassificationTask
from amc.tasks.detection import DetectionTask
from amc.tasks.retrieval import RetrievalTask


def load_task(name: str, data: ImageData) -> Task:
    """Load a task by name or import path.

    Args:
        name: `classification`, `detection`, `retrieval`, or `package.module:factory`; such a factory is
            called with `data` where its signature names it.
        data: What the task works on.

    Raises:
        UserError: The task is unknown or does not fit the data, or the factory fails or returns something
            else.
    """
    if name == "classification":
        return ClassificationTask(data)
    if name == "detection":
        return DetectionTask(data)
    if name == "retrieval":
        return RetrievalTask(data)
    if not is_import_path(name):
        raise UserError(
            f"There is no task '{name}': choose classification, detection, retrieval or "
            "package.module:factory."
        )
    task = call_factory(name, load_factory(name), {"data": data})
    if not isinstance(task, Task):
        raise UserError(
            f"The factory '{name}' returned a {type(task).__name__}, which is not an amc.tasks.Task."
        )
    return task
