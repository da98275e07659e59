"""The masked autoencoder: what each token sees, padding, tied embeddings, patches, saving, wrong sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generative.autoregressive.continuous.emigm import EMIGM, EMIGM_HEADS, EMIGM_SIZES
from generative.autoregressive.continuous.mar import MAR, MAR_SIZES
from generative.autoregressive.continuous.masked_autoencoder import MaskedAutoencoder, visible_tokens
from generative.core.errors import UserError

SMALL: dict[str, Any] = {
    "sample_size": 4, "patch_size": 1, "in_channels": 3, "num_classes": 5, "buffer_size": 2,
    "encoder_hidden_size": 16, "encoder_depth": 1, "encoder_num_heads": 2,
    "decoder_hidden_size": 16, "decoder_depth": 1, "decoder_num_heads": 2, "head_width": 8, "head_depth": 1,
}  # fmt: skip
LABELS = torch.tensor([0, 4, 5])  # 5 is the null condition


def build(network_class: type[MaskedAutoencoder] = MAR, **options: Any) -> MaskedAutoencoder:
    torch.manual_seed(0)
    network = network_class(**(SMALL | options)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # modulations and the output start at zero
    return network


def tokens() -> Tensor:
    return torch.randn(3, 16, 3, generator=torch.Generator().manual_seed(1))


def masks(*counts: int) -> Tensor:
    order = torch.rand(len(counts), 16, generator=torch.Generator().manual_seed(2)).argsort(1)
    return order.argsort(1) < torch.tensor(counts)[:, None]


def test_visible_positions_are_in_order_and_padded() -> None:
    masked = torch.tensor([[True, False, True, False], [False, True, True, True]])
    positions, is_known = visible_tokens(masked)
    assert positions.shape == (2, 2) and positions[0].tolist() == [1, 3] and positions[1, 0] == 0
    assert is_known is not None and is_known.tolist() == [[True, True], [True, False]]
    positions, is_known = visible_tokens(masked[:1])
    assert positions.tolist() == [[1, 3]] and is_known is None


@pytest.mark.parametrize("options", [{}, {"drop_masked": False}, {"tie_mask_embedding": False}])
def test_an_image_does_not_depend_on_how_much_the_others_know(options: dict[str, bool]) -> None:
    network = build(EMIGM, **options)
    masked = masks(3, 9, 16)
    together = network(tokens(), masked, LABELS)
    for image in range(3):
        alone = network(tokens()[image : image + 1], masked[image : image + 1], LABELS[image : image + 1])
        torch.testing.assert_close(together[image], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network_class", [MAR, EMIGM])
def test_masked_tokens_are_not_read_and_known_ones_and_the_class_are(network_class: type[MaskedAutoencoder]) -> None:
    network, masked = build(network_class), masks(5, 5, 5)
    expected = network(tokens(), masked, LABELS)
    assert expected.shape == (3, 16, 16)
    other = torch.where(masked[..., None], torch.full((), 7.0), tokens())
    assert torch.equal(network(other, masked, LABELS), expected)
    known = (~masked[0]).nonzero()[0, 0]
    changed = tokens()
    changed[0, known] += 1
    assert not torch.allclose(network(changed, masked, LABELS)[0], expected[0])
    assert not torch.allclose(network(tokens(), masked, LABELS.roll(1)), expected)


def test_null_condition_is_the_null_embedding() -> None:
    network = build()
    embedded = network.embed_labels(LABELS)
    assert torch.equal(embedded[2:], network.null_embedding)
    assert torch.equal(embedded[:2], network.class_embedding.weight[[0, 4]])


def test_tied_mask_embedding_is_one_parameter() -> None:
    tied, own = build(EMIGM), build(EMIGM, tie_mask_embedding=False)
    assert {name for name, _ in own.named_parameters()} - {name for name, _ in tied.named_parameters()} == {"mask_embedding"}
    masked = masks(5, 5, 5)
    expected = tied(tokens(), masked, LABELS[:2].repeat(2)[:3])
    with torch.no_grad():
        tied.null_embedding.add_(1)
    assert not torch.allclose(tied(tokens(), masked, LABELS[:2].repeat(2)[:3]), expected)  # none of these labels is null


def test_the_head_sees_the_masked_tokens_in_order() -> None:
    network, masked = build(), masks(3, 3, 3)
    noised = torch.randn(2, 9, 3)
    timesteps = torch.randint(1000, (2, 9))
    output = network(tokens(), masked, LABELS, noised, timesteps)
    features = network(tokens(), masked, LABELS)[masked]
    assert output.shape == (2, 9, 6)
    torch.testing.assert_close(output[1, 4:5], network.head(noised[1, 4:5], timesteps[1, 4:5], features[4:5]))


@pytest.mark.parametrize("counts", [(3, 3, 3), (1, 7, 0)])
def test_chosen_vectors_are_those_of_all(counts: tuple[int, ...]) -> None:
    network, masked = build(), masks(9, 9, 9)
    chosen = masks(*counts) & masked
    expected = network(tokens(), masked, LABELS)[chosen]
    torch.testing.assert_close(network(tokens(), masked, LABELS, chosen=chosen), expected, atol=1e-5, rtol=1e-4)


def test_patches_come_back_and_are_ordered_channel_first() -> None:
    network = build(sample_size=6, patch_size=2)
    latents = torch.randn(2, 3, 6, 6)
    cut = network.patchify(latents)
    assert cut.shape == (2, 9, 12) and torch.equal(network.unpatchify(cut), latents)
    assert torch.equal(cut[0, 5].reshape(3, 2, 2), latents[0, :, 2:4, 4:6])
    with pytest.raises(UserError, match=r"takes latents \(B, 3, 6, 6\), got \(2, 3, 8, 8\)"):
        network.patchify(torch.zeros(2, 3, 8, 8))


def test_dropout_acts_in_training_only_and_checkpointing_changes_no_gradient() -> None:
    network, masked = build(attention_dropout=0.5, residual_dropout=0.5), masks(3, 3, 3)
    assert torch.equal(network(tokens(), masked, LABELS), network(tokens(), masked, LABELS))
    network.train()
    assert not torch.equal(network(tokens(), masked, LABELS), network(tokens(), masked, LABELS))
    plain = build(attention_dropout=0.0, residual_dropout=0.0).train()
    arguments = (tokens(), masked, LABELS, torch.ones(1, 9, 3), torch.zeros(1, 9, dtype=torch.long))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            plain.enable_gradient_checkpointing()
        plain.zero_grad()
        plain(*arguments).square().mean().backward()
        gradients.append([p.grad.clone() for p in plain.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("network_class", [MAR, EMIGM])
def test_saving_and_loading(network_class: type[MaskedAutoencoder], tmp_path: Path) -> None:
    network, masked = build(network_class), masks(3, 3, 3)
    network.save_pretrained(tmp_path)
    loaded = network_class.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(tokens(), masked, LABELS), network(tokens(), masked, LABELS))


def test_published_sizes_have_their_published_parameters() -> None:
    """Millions in the papers' tables."""
    with torch.device("meta"):
        found = {name: round(MAR(**sizes).num_parameters() / 1e6) for name, sizes in MAR_SIZES.items()}
        emigm = {
            (size, name): round(
                EMIGM(in_channels=size // 16, head_depth=depth, head_width=width, **EMIGM_SIZES[name]).num_parameters() / 1e6
            )
            for size, heads in EMIGM_HEADS.items()
            for name, (depth, width) in heads.items()
        }
    assert found == {"B": 208, "L": 478, "H": 942}
    assert emigm == {
        (256, "XS"): 69, (256, "S"): 97, (256, "B"): 208, (256, "L"): 478, (256, "H"): 942,
        (512, "XS"): 105, (512, "S"): 132, (512, "B"): 244, (512, "L"): 478,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"patch_size": 3}, "patch_size must divide sample_size 4, got 3"),
        ({"encoder_num_heads": 3}, "encoder_num_heads must divide encoder_hidden_size 16, got 3"),
        ({"buffer_size": 0}, "buffer_size must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"decoder_hidden_size": 8}, "needs encoder and decoder of one width, got 16 and 8"),
        ({"mask_strategy": "sine"}, "mask_strategy must be"),
    ],
)
def test_wrong_sizes_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        EMIGM(**(SMALL | options))
