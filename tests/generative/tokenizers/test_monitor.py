"""Memory of a tokenizer's training: windows, perplexity, reservoir and revival by hand, and its way through a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from seeded import generator
from torch import Tensor, nn

from generative.core import checkpoint as ckpt
from generative.core.errors import UserError
from generative.tokenizers.base import CodeUse
from generative.tokenizers.monitor import PICKS_PER_MICRO_BATCH, TokenizerMonitor


def run_step(monitor: TokenizerMonitor, ids: list[int], vectors: Tensor | None = None, step: int = 1, **options: object) -> None:
    """Step number ``step``, of one micro-batch whose codes are ``ids``."""
    num_codes = monitor.uses["codebook"].num_codes
    monitor.record_codes({"codebook": CodeUse(torch.tensor(ids), num_codes, vectors)}, generator())
    defaults = {"codebooks": {}, "threshold": None, "interval": 1, "step": step}
    monitor.finish_codes(**{**defaults, **options})


def test_usage_is_the_share_of_codes_of_the_last_steps() -> None:
    monitor = TokenizerMonitor({"codebook": (4, 0)}, window_steps=2)
    shares = []
    for ids in ([0, 0, 1], [2], [2], [3, 3]):
        run_step(monitor, ids)
        shares.append(monitor.uses["codebook"].usage().item())
    assert shares == [0.5, 0.75, 0.25, 0.5]


def test_perplexity_of_recent_frequencies() -> None:
    monitor = TokenizerMonitor({"codebook": (2**18, 0)}, window_steps=10)
    run_step(monitor, list(range(64)))
    assert monitor.uses["codebook"].perplexity().item() == pytest.approx(64, rel=1e-4)
    run_step(monitor, [7] * 64)
    old, new = 0.09, 0.1  # weights of the two steps' 64 uses
    shares = [(old + 64 * new) / (64 * (old + new))] + [old / (64 * (old + new))] * 63
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert monitor.uses["codebook"].perplexity().item() == pytest.approx(expected, rel=1e-4)


def test_micro_batches_add_up_and_may_leave_a_codebook_out() -> None:
    monitor = TokenizerMonitor({"codebook_0": (3, 2), "codebook_1": (3, 2)})
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    use = CodeUse(torch.tensor([0, 1]), 3, vectors)
    monitor.record_codes({"codebook_0": use, "codebook_1": use}, generator())
    monitor.record_codes({"codebook_0": use}, generator())
    monitor.finish_codes({}, None, 1, 1)
    first, second = monitor.uses["codebook_0"], monitor.uses["codebook_1"]
    assert (first.counts * 100).round().tolist() == [2, 2, 0] and (second.counts * 100).round().tolist() == [1, 1, 0]
    assert int(first.filled) == 3 and int(second.filled) == 2  # a reservoir holds no more rows than the codebook
    assert {tuple(row) for row in second.reservoir[:2].tolist()} == {(1, 2), (3, 4)}
    with pytest.raises(ValueError, match="codes of 'other', it announced codebook_0, codebook_1"):
        monitor.record_codes({"other": use}, generator())


def test_the_reservoir_holds_the_newest_vectors() -> None:
    monitor = TokenizerMonitor({"codebook": (4096, 1)}, reservoir_size=600)
    for step in range(4):
        run_step(monitor, [0] * 1000, torch.full((1000, 1), float(step)))
    rows = monitor.uses["codebook"].reservoir[:, 0].tolist()
    newest = [3.0] * PICKS_PER_MICRO_BATCH + [2.0] * PICKS_PER_MICRO_BATCH
    assert rows == newest + [1.0] * (600 - len(newest)) and int(monitor.uses["codebook"].filled) == 600


def test_dead_rows_are_revived_and_no_others() -> None:
    monitor = TokenizerMonitor({"codebook": (6, 2)})
    codebook = nn.Parameter(torch.arange(12.0).view(6, 2) - 100)
    before = codebook.detach().clone()
    vectors = torch.randn(50, 2, generator=generator())
    options = {"codebooks": {"codebook": codebook}, "threshold": 3, "interval": 2}
    for step, ids in enumerate(([0, 5], [0], [0]), start=1):
        run_step(monitor, (ids * 50)[:50], vectors, step, **options)
        assert torch.equal(codebook, before)  # two steps are fewer than three, and step 3 is none of the interval's
    run_step(monitor, [0] * 50, vectors, 4, **options)
    changed = (codebook != before).any(1)
    assert changed.tolist() == [False, True, True, True, True, True]  # row 5 was used at step 1, three steps ago
    assert all(any(torch.equal(row, vector) for vector in vectors) for row in codebook[changed].detach())
    assert len(codebook[changed].detach().unique(dim=0)) == 5 and int(monitor.uses["codebook"].revived) == 5
    after = codebook.detach().clone()
    run_step(monitor, [0] * 50, vectors, 5, **options)
    run_step(monitor, [0] * 50, vectors, 6, **options)
    assert torch.equal(codebook, after)  # a row just revived has as long again to be used


def test_no_more_rows_are_revived_than_there_are_vectors() -> None:
    monitor = TokenizerMonitor({"codebook": (64, 2)})
    codebook = nn.Parameter(torch.zeros(64, 2))
    run_step(monitor, [0] * 5, torch.rand(5, 2) + 1, codebooks={"codebook": codebook}, threshold=1)
    assert int((codebook != 0).any(1).sum()) == 5


def test_moments_of_latents_and_logits() -> None:
    monitor = TokenizerMonitor({})
    assert monitor.latent_std() is None
    latents = 3 + 2 * torch.randn(2, 1000, generator=generator())
    for part in latents:  # two micro-batches
        monitor.record_latents(part)
    monitor.finish_codes({}, None, 1, 1)
    assert monitor.latent_std() == pytest.approx(latents.std(correction=0).item(), rel=1e-4)
    monitor.record_logits(torch.tensor([1.0, 3.0]), torch.tensor([-4.0]))
    monitor.record_logits(torch.tensor([4.0]), torch.tensor([0.0]))
    monitor.finish_logits()
    torch.testing.assert_close(monitor.logit_averages, 0.001 * torch.tensor([3.0, -2.0]))


def test_a_checkpoint_holds_all_of_it(tmp_path: Path) -> None:
    monitor = TokenizerMonitor({"codebook": (6, 2)})
    run_step(monitor, [0, 3], torch.rand(2, 2))
    monitor.record_latents(torch.rand(5))
    run_step(monitor, [0, 3], torch.rand(2, 2), step=2)
    buffers = dict(monitor.named_buffers())
    ckpt.save_buffers(buffers, tmp_path)
    loaded = TokenizerMonitor({"codebook": (6, 2)})
    ckpt.load_buffers(dict(loaded.named_buffers()), tmp_path)
    assert set(monitor.state_dict()) == set(buffers) and not list(monitor.parameters())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in buffers.items())
    for other in ({"codebook": (7, 2)}, {"other": (6, 2)}):
        with pytest.raises(UserError, match="not fit this configuration: buffer 'uses.codebook.*' is missing, unknown or of"):
            ckpt.load_buffers(dict(TokenizerMonitor(other).named_buffers()), tmp_path)
