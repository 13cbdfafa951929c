"""From a name on the command line to a data set."""

from pathlib import Path

from amc.data.cifar10 import cifar10
from amc.data.digits import digits
from amc.data.folder import folder
from amc.data.hugging_face import PREFIX, hugging_face
from amc.data.images import ImageData
from amc.data.shapes import shapes
from amc.data.voc import voc
from amc.data.voc_crops import voc_crops
from amc.errors import UserError
from amc.plugins import call_factory, is_import_path, load_factory

NAMES = ("digits", "cifar10", "shapes", "voc", "voc-crops")
DEFAULT_ROOT = Path("data")


def load_data(name: str, data_root: Path | str | None = None, side: int | None = None) -> ImageData:
    """Load a data set by name, folder or import path.

    Args:
        name: `digits`, `cifar10`, `shapes`, `voc`, `voc-crops` (the objects of such data as images), a folder
            with train and val, `hf:NAME` (or `hf:FOLDER`) of the datasets library, or
            `package.module:factory`; such a factory is called with `data_root` and `side` where its signature
            names them, and returns `ImageData`.
        data_root: Where CIFAR-10 or the VOC folders lie; `data` by default.
        side: Height and width in pixels where the data set can be resized; None takes its default.

    Raises:
        UserError: The data set is unknown, missing or damaged.
    """
    root = DEFAULT_ROOT if data_root is None else Path(data_root)
    if name == "digits":
        return digits() if side is None else digits(side)
    if name == "cifar10":
        if side not in (None, 32):
            raise UserError(f"CIFAR-10 images are 32 x 32 pixels; a side of {side} is not offered.")
        return cifar10(root)
    if name == "shapes":
        return shapes() if side is None else shapes(side)
    if name == "voc":
        return voc(root) if side is None else voc(root, side)
    if name == "voc-crops":
        return voc_crops(root) if side is None else voc_crops(root, side)
    if name.startswith(PREFIX):
        source = name.removeprefix(PREFIX)
        return hugging_face(source) if side is None else hugging_face(source, side)
    if Path(name).is_dir():
        return folder(Path(name)) if side is None else folder(Path(name), side)
    if is_import_path(name):
        return _from_factory(name, root, side)
    raise UserError(
        f"There is no data set '{name}': choose {', '.join(NAMES)}, a folder that exists and holds train and "
        "val, hf:NAME or package.module:factory."
    )


def _from_factory(path: str, root: Path, side: int | None) -> ImageData:
    options = {"data_root": root} | ({} if side is None else {"side": side})
    data = call_factory(path, load_factory(path), options)
    if not isinstance(data, ImageData):
        raise UserError(f"The factory '{path}' returned a {type(data).__name__}, not an amc.data.ImageData.")
    return data
