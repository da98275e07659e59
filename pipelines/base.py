"""What every image pipeline shares: labels, per-image randomness, saving, loading and output types."""

from __future__ import annotations

import abc
import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor, nn

from generative.core.class_names import find_label
from generative.core.errors import UserError
from generative.core.hub import local_folder
from generative.core.images import images_to_uint8, images_to_unit_range
from generative.core.options import SamplingOptions
from generative.core.sampling import SampleState
from generative.core.seeding import ImageNoise
from generative.core.weights import component_class
from pipelines.old_defaults import current_defaults

OutputType = Literal["pil", "np", "pt", "uint8"]
ClassLabels = int | str | Sequence[int | str] | Tensor

# Libraries whose classes a pipeline folder may name: nothing else is imported on behalf of a folder from a stranger.
OWN_LIBRARIES = ("generative", "pipelines")
TRUSTED_LIBRARIES = (*OWN_LIBRARIES, "diffusers")

CLASS_NAMES_KEY = "_class_names"
"""Key of a pipeline's config: names of the classes by label. diffusers takes keys without "_" for constructor arguments."""


class ImagePipeline(DiffusionPipeline, abc.ABC):
    """Whatever is made of saved networks and images: samples of classes, reconstructions of images, the classes of images.

    Attributes:
        options_class: Options of sampling of the family.
        purpose: What it does, for messages: follows its name.
        advice: What to do with it where images of classes are wanted.
        evaluator: Dotted path of the class that scores it during training.
    """

    options_class: ClassVar[type[SamplingOptions]] = SamplingOptions
    purpose: ClassVar[str] = "makes images of classes"
    advice: ClassVar[str] = "use `generative sample` with it"
    evaluator: ClassVar[str] = "generative.core.evaluation.Evaluator"

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """Options saved with the pipeline, those that the objective was evaluated with: every call starts from them."""
        return dict(self.config.get("sampling_defaults") or {})

    @property
    @abc.abstractmethod
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of their labels, as the training data had them; None where they are not known."""
        names = self.config.get(CLASS_NAMES_KEY)
        return None if names is None else list(names)

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        self.register_to_config(**{CLASS_NAMES_KEY: None if names is None else [str(name) for name in names]})

    def merge_options(self, options: Mapping[str, Any] | None = None) -> Any:
        """Options of a call: the caller's, over the defaults that were saved with the pipeline, over the family's.

        Args:
            options: Some options by name.

        Returns:
            An instance of ``options_class``.

        Raises:
            UserError: If there is no option of a name, or a value is of a wrong type.
        """
        known = self.options_class.names()
        saved = {name: value for name, value in self.sampling_defaults.items() if name in known}
        if forgotten := [name for name in self.sampling_defaults if name not in known]:
            warnings.warn(
                f"{type(self).__name__} was saved with the sampling option {forgotten[0]}, which this version does not have; it "
                "is left out",
                stacklevel=2,
            )
        return self.options_class.from_dict(saved).merge(options or {}, type(self).__name__)

    def plan(self, options: Any) -> Any:
        """Check the options of a call, and make what it samples with; a pipeline that has options writes its own.

        ``sample`` begins with it, and ``check_options`` is nothing else: what one refuses, the other does.

        Args:
            options: An instance of ``options_class``.

        Raises:
            UserError: If an option is out of range, or the saved networks cannot do what it asks.
        """

    def check_options(self, **options: Any) -> None:
        """Refuse sampling options as a call would, before anything is trained or sampled.

        Args:
            **options: Some of ``__call__``'s, others are as saved.

        Raises:
            UserError: If there is no such option, or ``plan`` refuses them.
        """
        self.plan(self.merge_options(options))

    def postprocess(
        self, images: Tensor, output_type: OutputType, return_dict: bool
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | np.ndarray | Tensor]:
        """Turn decoded images into what the caller asked for.

        Args:
            images: (B, 3, H, W) float32, [-1, 1] (values outside are clipped).
            output_type: ``pil`` list of PIL images, ``np`` (B, H, W, 3) float32 in [0, 1], ``pt`` (B, 3, H, W) float32 in [0, 1],
                ``uint8`` (B, 3, H, W) uint8 as metrics take it.
            return_dict: Wrap in ``ImagePipelineOutput``, else a tuple of one.
        """
        if not bool(torch.isfinite(images).all()):
            raise UserError("the pipeline made NaN or infinite pixels; its weights have diverged or overflow in this precision")
        result: Any
        if output_type == "pt":
            result = images_to_unit_range(images)
        elif output_type == "np":
            result = images_to_unit_range(images).permute(0, 2, 3, 1).cpu().numpy()
        elif output_type == "uint8":
            result = images_to_uint8(images)
        elif output_type == "pil":
            arrays = images_to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
            result = [Image.fromarray(array) for array in arrays]
        else:
            raise UserError(f"output_type must be pil, np, pt or uint8, got {output_type!r}")
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        **components: Any,
    ) -> Any:
        """Load a pipeline folder: weights from safetensors only, classes of known libraries only.

        Classes of ours are found by their names, wherever their files lie now.

        Args:
            pretrained_model_name_or_path: A folder written by ``save_pretrained`` (``runs/NAME/pipeline``), or ``user/repo`` of
                the hub where no folder has that name.
            torch_dtype: Precision of the networks; None for that of their files, half precision widened to float32.
            revision: Branch, tag or commit of a repository; None for its main branch.
            **components: Take these instead of the folder's (``scheduler=...``).

        Raises:
            UserError: If the folder is missing, incomplete, of another pipeline class, or names a foreign library.
        """
        if inspect.isabstract(cls):
            place = pretrained_model_name_or_path
            raise UserError(f"{cls.__name__} is no pipeline itself; pipelines.load_pipeline('{place}') finds the class that is")
        folder = local_folder(pretrained_model_name_or_path, revision)
        index = read_model_index(folder)
        if index["_class_name"] != cls.__name__:
            raise UserError(f"'{folder}' holds a {index['_class_name']}, not a {cls.__name__}; load it with that class")
        parameters = inspect.signature(cls.__init__).parameters
        for name in [name for name in components if name not in parameters]:
            raise UserError(f"{cls.__name__} has no component '{name}'; it has {', '.join(list(parameters)[1:])}")
        arguments = {
            name: value for name, value in index.items() if name in parameters and not isinstance(value, list)
        } | components
        if "sampling_defaults" in index and "sampling_defaults" in parameters and "sampling_defaults" not in components:
            arguments["sampling_defaults"] = current_defaults(index)
        try:
            for name, library in component_libraries(index).items():
                if name not in components:
                    arguments[name] = load_component(folder / name, library, index[name][1], torch_dtype)
            pipeline = cls(**arguments)
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError, ImportError, LookupError, TypeError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"pipeline '{folder}' cannot be loaded, a file of it is missing or damaged: {reason}") from error
        if (names := read_class_names(index)) is not None:
            pipeline.class_names = names
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval()
                # Tensors read from a file lie at any address, and sums over unaligned memory round differently.
                for tensor in [*component.parameters(), *component.buffers()]:
                    # Half precision is how weights are stored, not how networks compute unless they are asked to.
                    is_widened = torch_dtype is None and tensor.dtype in (torch.float16, torch.bfloat16)
                    tensor.data = tensor.data.float() if is_widened else tensor.data.clone()
        return pipeline


class ImageGenerationPipeline(ImagePipeline):
    """Class-conditional images from saved networks.

    A family names its ``options_class`` and fills in ``plan`` (what options make of the networks), ``prepare_state`` (where
    sampling starts), ``sample`` (from there to the end) and ``decode`` (state to images); ``sample_loop`` of the core, or a
    sampler of diffusion, does what is between.
    """

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Any,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """Generate one image per class label.

        Args:
            class_labels: Label or class name, or (B,) of them; see ``check_class_labels``.
            generator: A list with one CPU generator per image, one generator, or None; see ``image_noise``.
            output_type: ``pil``, ``np``, ``pt`` or ``uint8``; see ``postprocess``.
            return_dict: Wrap the images in ``ImagePipelineOutput``, else a tuple of one.
            **options: Fields of ``options_class``, over the pipeline's ``sampling_defaults``.

        Returns:
            The images.

        Raises:
            UserError: If an argument is out of range.

        Example:
            >>> pipeline = load_pipeline("runs/quickstart/dit")
            >>> images = pipeline([3, 5], guidance_scale=2.0, generator=torch.Generator().manual_seed(0)).images
        """
        chosen = self.merge_options(options)
        labels = self.check_class_labels(class_labels)
        state = self.sample(labels, chosen, self.image_noise(generator, len(labels)))
        return self.postprocess(self.decode(state), output_type, return_dict)

    @abc.abstractmethod
    def sample(self, class_labels: Tensor, options: Any, noise: ImageNoise) -> SampleState:
        """Run from ``prepare_state`` to the end; begins with ``plan``.

        Args:
            class_labels: From ``check_class_labels``.
            options: An instance of ``options_class``.
            noise: One random stream per image.

        Returns:
            What ``decode`` takes.

        Raises:
            UserError: As ``plan``.
        """

    @property
    @abc.abstractmethod
    def num_classes(self) -> int:
        """Number of classes; labels are in [0, num_classes)."""

    @abc.abstractmethod
    def prepare_state(self, class_labels: Tensor, noise: ImageNoise) -> SampleState:
        """Make the state in which sampling starts.

        Args:
            class_labels: (B,) int64.
            noise: One random stream per image.
        """

    @abc.abstractmethod
    def decode(self, state: SampleState) -> Tensor:
        """Turn the final state into images (B, 3, H, W), float32 in [-1, 1]."""

    def check_class_labels(self, class_labels: ClassLabels) -> Tensor:
        """Validate class labels.

        Args:
            class_labels: One label, or a sequence or tensor (B,) of them; a class may be given by its name.

        Returns:
            (B,) int64 on the pipeline's device.

        Raises:
            UserError: If there is none, one is outside [0, num_classes), or there is no class of a name.
        """
        class_labels = self.number_classes(class_labels)
        try:
            labels = torch.as_tensor(class_labels)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"class_labels must be integers, got {class_labels!r}") from error
        labels = labels.reshape(-1)
        if labels.numel() == 0:
            raise UserError("class_labels is empty; give at least one class label")
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise UserError(f"class_labels must be integers, got {labels.dtype}")
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if wrong.numel():
            raise UserError(
                f"class label {int(wrong[0])} is outside 0..{self.num_classes - 1}; this pipeline has {self.num_classes} classes"
            )
        return labels.to(self.device, torch.int64)

    def number_classes(self, class_labels: Any) -> Any:
        """Put labels in the place of class names, see ``find_label``; what holds no text is handed back as it is.

        Raises:
            UserError: If there is no class of a name, or it is not clear which is meant.
        """
        if isinstance(class_labels, str):
            return find_label(class_labels, self.class_names, self.num_classes)
        if isinstance(class_labels, np.ndarray) and class_labels.dtype.kind in "UO":
            class_labels = class_labels.tolist()
        if isinstance(class_labels, Sequence) and any(isinstance(label, str) for label in class_labels):
            names = self.class_names
            return [find_label(c, names, self.num_classes) if isinstance(c, str) else c for c in class_labels]
        return class_labels

    def image_noise(self, generator: torch.Generator | Sequence[torch.Generator] | None, batch_size: int) -> ImageNoise:
        """One random stream per image.

        Args:
            generator: A list with one CPU generator per image; or one generator, from which a seed per image is drawn in order;
                or None for fresh randomness.
            batch_size: Number of images.

        Raises:
            UserError: If a list of another length is given.
        """
        if isinstance(generator, Sequence):
            if len(generator) != batch_size:
                raise UserError(f"generator is a list of {len(generator)} for {batch_size} images; give one generator per image")
            return ImageNoise(generator, self.device)
        seeds = torch.randint(2**62, (batch_size,), generator=generator, device=generator.device if generator else "cpu")
        return ImageNoise([torch.Generator().manual_seed(int(seed)) for seed in seeds], self.device)


def read_model_index(folder: Path) -> dict[str, Any]:
    """Read and check ``model_index.json`` of a pipeline folder.

    Raises:
        UserError: If it is missing, unreadable, or names a component of a library that is not trusted.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise UserError(f"'{folder}' is not a pipeline folder: it has no model_index.json")
    try:
        index = json.loads(path.read_text())
        libraries = component_libraries(index)
        read_class_names(index)
        index["_class_name"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged: {error}") from error
    for name, library in libraries.items():
        if library.split(".")[0] not in TRUSTED_LIBRARIES:
            raise UserError(
                f"'{path}' asks for component '{name}' of library '{library}'; only {', '.join(TRUSTED_LIBRARIES)} are loaded"
            )
    return index


def component_libraries(index: Mapping[str, Any]) -> dict[str, str]:
    """Library of each component that a model_index.json names; components left out (null) are not among them."""
    libraries = {}
    for name, entry in index.items():
        if not name.startswith("_") and isinstance(entry, list):
            library, class_name = entry
            if not isinstance(library, str | None) or not isinstance(class_name, str | None):
                raise TypeError(f"component '{name}' must be a library and a class, got {entry}")
            if library is not None:
                libraries[name] = library
    return libraries


def read_class_names(index: dict[str, Any]) -> list[str] | None:
    """Names of the classes that a model_index.json holds, in the order of their labels; None where it holds none.

    Raises:
        ValueError: If they are not a list of texts.
    """
    names = index.get(CLASS_NAMES_KEY)
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{CLASS_NAMES_KEY} must be a list of texts")
    return names


def load_component(folder: Path, library: str, class_name: str, torch_dtype: torch.dtype | None = None) -> Any:
    """Load a component of a pipeline folder.

    Args:
        folder: Where it was saved.
        library: Module that the index names: of ours a hint only, else ``diffusers``.
        class_name: Its class.
        torch_dtype: Precision of a network or a pipeline; None for its file's.

    Raises:
        UserError: If there is no such class.
    """
    component = component_class(class_name, library, folder)
    if issubclass(component, ImagePipeline):
        return component.from_pretrained(folder, torch_dtype=torch_dtype)
    if issubclass(component, nn.Module):
        return component.from_pretrained(folder, use_safetensors=True, torch_dtype=torch_dtype)
    return component.from_pretrained(folder)
