"""What scores the points of a sweep: ``fid-score`` against a reference, or the evaluation of a run's own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generative.cli.config import build_evaluator
from generative.cli.run_config import CONFIG_FILE
from generative.cli.sweeps import (
    SAMPLE_PRECISIONS,
    SCORING,
    precision_setting,
    reference_identity,
    score_pipeline,
    scoring_settings,
)
from generative.core.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from generative.core.runtime import Precision
    from pipelines.base import ImageGenerationPipeline


class ReferenceScorer:
    """Scores as ``fid-score`` does.

    Args:
        reference: Real images, or statistics.
        options: Options of ``metrics.score``.
        output: Folder of the sweep, where pipelines lie while they are scored.

    Attributes:
        settings: What its scores depend on.
    """

    def __init__(self, reference: Path, options: Mapping[str, Any], output: Path) -> None:
        self.reference, self.options, self.output = reference, options, output
        self.settings = {
            "reference": reference_identity(reference),
            "num_samples": options["num_samples"],
            "seed": options["seed"],
            **precision_setting(options["sample_precision"]),
            **scoring_settings({name: options[name] for name in SCORING}),
        }

    def score(self, pipeline: ImageGenerationPipeline, name: str, accelerator: Accelerator) -> dict[str, Any]:
        """Score samples of a pipeline; see ``sweeps.score_pipeline``."""
        record = score_pipeline(pipeline, self.output / ".sampling" / name, self.reference, self.options, accelerator)
        return {**record, "reference": self.reference.name, "extractor": self.options["extractor"]}


class RunScorer:
    """Scores with the evaluation of the run's own configuration.

    Args:
        run: The run.
        trust_code: Allow its configuration to name classes of any module.
        num_samples: Images at each length; None for the evaluation's number, and so on.
        seed: Seed of the samples.
        batch_size: Images at a time.
        mixed_precision: Of the accelerator that samples.

    Attributes:
        settings: What its scores depend on.

    Raises:
        UserError: If the run has no evaluation, or it cannot be had.
    """

    def __init__(
        self,
        run: Path,
        trust_code: bool,
        num_samples: int | None,
        seed: int | None,
        batch_size: int | None,
        mixed_precision: Precision = "no",
    ) -> None:
        if not (run / CONFIG_FILE).is_file():
            raise UserError(f"'{run}' holds no {CONFIG_FILE}, whose evaluation would score; give --reference")
        self.evaluator, self.training = build_evaluator(run / CONFIG_FILE, trust_code)
        evaluator = self.evaluator
        evaluator.num_samples = num_samples or evaluator.num_samples
        evaluator.seed = evaluator.seed if seed is None else seed
        evaluator.batch_size = batch_size or evaluator.batch_size
        self.settings = {
            "reference": evaluator.held_out.fingerprint if evaluator.held_out else evaluator.describe_reference(),
            "num_samples": evaluator.num_samples,
            "seed": evaluator.seed,
            **precision_setting(SAMPLE_PRECISIONS[mixed_precision]),
            "evaluation": {
                "extractor": evaluator.extractor,
                "weights": None if evaluator.weights is None else scoring_settings({"weights": evaluator.weights})["weights"],
                "input_size": evaluator.input_size,
                "metrics": evaluator.metrics,
                "resizer": evaluator.resizer,
                "classifier_data": evaluator.classifier_data and evaluator.classifier_data.fingerprint,
                **evaluator.beyond_defaults(),
            },
        }

    def score(self, pipeline: ImageGenerationPipeline, name: str, accelerator: Accelerator) -> dict[str, Any]:
        """Score samples of a pipeline."""
        self.evaluator.prepare(accelerator, progress=accelerator.is_main_process)
        if accelerator.mixed_precision != "no":
            self.evaluator.autocast = accelerator.autocast
        evaluation = self.evaluator.evaluate(pipeline, accelerator, {}, progress=accelerator.is_main_process)
        data = self.evaluator.describe_reference().split()[0]
        return {
            "scores": evaluation.scores,
            "notes": [],
            "reference": f"the run's evaluation ({data})",
            "protocol": str(evaluation.protocol.get("resizer", "the evaluation's")),
            "extractor": self.evaluator.extractor,
        }
