"""Guidance saved in the words of old keeps its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from generative.autoregressive.masked.maskgit import MaskGITTransformer
from generative.core.guidance import step_guidance
from generative.tokenizers.pixel import PixelTokenizer
from pipelines import load_pipeline
from pipelines.maskgit import MaskGITPipeline
from pipelines.old_defaults import current_defaults


def index(library: str, **defaults: Any) -> dict[str, Any]:
    return {"transformer": [library, "MaskGITTransformer"], "sampling_defaults": {"guidance_scale": 3.0, **defaults}}


@pytest.mark.parametrize("num_steps", [3, 5, 7, 10, 576])
def test_intervals_guide_the_steps_that_they_did(num_steps: int) -> None:
    for start, stop in [(0.0, 0.8), (0.2, 0.6), (1 / 3, 1.0), (0.1, 0.7), (0.0, 2 / num_steps)]:
        (low, high) = current_defaults(index("generative.autoregressive.maskgit", guidance_interval=[start, stop]))[
            "guidance_interval"
        ]
        scale = step_guidance(3.0, num_steps, interval=(low, high))
        guided = [(scale(step) if callable(scale) else scale) == 3.0 for step in range(num_steps)]
        assert guided == [start <= step / num_steps < stop for step in range(num_steps)]


def test_the_cosine_of_old_is_power_cosine() -> None:
    old = index("generative.autoregressive.maskgit", guidance_schedule="cosine", guidance_interval=None)
    assert current_defaults(old) == {"guidance_scale": 3.0, "guidance_schedule": "power_cosine", "guidance_interval": None}


@pytest.mark.parametrize("wrong", [[0.8, 0.2], ["a", 1], [float("inf"), 1], 3])
def test_what_is_no_interval_is_left_to_be_refused(wrong: Any) -> None:
    assert current_defaults(index("generative.autoregressive.maskgit", guidance_interval=wrong))["guidance_interval"] == wrong


def test_what_is_saved_today_stays() -> None:
    today = index("generative.autoregressive.masked.maskgit", guidance_schedule="cosine", guidance_interval=[0.2, 0.6])
    assert current_defaults(today) == today["sampling_defaults"]
    assert current_defaults({"denoiser": ["generative.diffusion.dit", "DiT"], "sampling_defaults": None}) is None


def test_an_old_folder_is_translated_once(tmp_path: Path) -> None:
    tokenizer = PixelTokenizer(2, 5, 1)
    network = MaskGITTransformer(tokenizer.num_codes, 3, tokenizer.grid_size, hidden_size=16, depth=1, num_heads=2)
    defaults = {"guidance_scale": 3.0, "guidance_schedule": "cosine", "guidance_interval": [0.0, 0.75], "num_inference_steps": 4}
    MaskGITPipeline(network, tokenizer, defaults).save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "model_index.json"
    content = json.loads(path.read_text())
    content["transformer"][0] = "generative.autoregressive.maskgit"
    path.write_text(json.dumps(content))
    loaded = load_pipeline(tmp_path / "old")
    loaded.save_pretrained(tmp_path / "new")
    for pipeline in (loaded, load_pipeline(tmp_path / "new")):
        saved = pipeline.sampling_defaults
        assert saved["guidance_schedule"] == "power_cosine" and list(saved["guidance_interval"]) == [0.25, 1.0]
