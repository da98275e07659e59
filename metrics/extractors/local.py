"""One's own extractor: a class in one local file, named on the command line as ``path/to/file.py:ClassName``."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from metrics.extractors.base import FeatureExtractor
from metrics.files.weights import sha256_of

#: What an extractor states about itself, on its class or in its constructor.
_STATED = ("name", "input_size", "weights_sha256", "feature_dims", "embedding")


def build_local_extractor(spec: str, weights: Path | None, input_size: int | None) -> FeatureExtractor:
    """Run a local file and build the extractor it defines.

    Args:
        spec: "path/to/file.py:ClassName".
        weights: Passed to its ``from_file``.
        input_size: Passed to its ``from_file``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file can't be run, has no such class, or the class is not a complete ``FeatureExtractor``.
    """
    cls = load_local_class(spec)
    extractor = cls.from_file(weights, input_size)
    missing = [name for name in _STATED if not hasattr(extractor, name)]
    if missing:
        raise ValueError(f"extractor {spec} does not set {', '.join(missing)}: state them on the class or in its constructor.")
    if extractor.embedding not in extractor.feature_dims:
        raise ValueError(
            f"extractor {spec} names the embedding {extractor.embedding!r}, which is none of its features "
            f"({', '.join(extractor.feature_dims)}): add it to feature_dims."
        )
    extractor.code_sha256 = sha256_of(Path(spec.rsplit(":", 1)[0]).expanduser())
    return extractor


def load_local_class(spec: str) -> type[FeatureExtractor]:
    """Return the extractor class of "path/to/file.py:ClassName"; errors are those of ``build_local_extractor``."""
    file, class_name = spec.rsplit(":", 1)
    module = _run(Path(file).expanduser(), spec)
    cls = getattr(module, class_name, None)
    if cls is None:
        defined = [name for name, value in vars(module).items() if _is_extractor(value) and value.__module__ == module.__name__]
        found = f"it defines {', '.join(defined)}" if defined else "it defines no subclass of metrics.extractors.FeatureExtractor"
        raise ValueError(f"extractor {spec}: {file} has no class {class_name!r} ({found}).")
    if not _is_extractor(cls):
        raise ValueError(f"extractor {spec}: {class_name} is not a subclass of metrics.extractors.FeatureExtractor: make it one.")
    if inspect.isabstract(cls):
        raise ValueError(f"extractor {spec}: {class_name} does not define {', '.join(sorted(cls.__abstractmethods__))}: add it.")
    return cls


def _is_extractor(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, FeatureExtractor)


def _run(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"extractor {spec}: the file {path} does not exist.")
    # Dataclasses and pickling look a module up by name, so it needs one that meets no other.
    name = f"_extractor_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # The path ends in ".py" and exists.
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # Whatever one's own code raises at import is told as what it is.
        del sys.modules[name]
        raise ValueError(f"extractor {spec}: running {path} failed with {type(error).__name__}: {error}.") from error
    return module
