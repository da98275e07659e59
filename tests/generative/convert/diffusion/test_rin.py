"""Official RIN options and names. Values are compared in tests/parity."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tensor_bundles import write_bundle
from torch import Tensor

from generative.convert import get_source, load_official
from generative.convert.diffusion.rin import plain_name
from generative.convert.diffusion.rin_options import formulation, sampler, schedule_options
from generative.convert.files.read import Checkpoint, NetworkPart, read_checkpoints
from generative.convert.files.recognise import choose_parts, recognise
from generative.core.errors import UserError

CONFIG: dict[str, Any] = {
    "num_layers": "2,1",
    "latent_slots": 7,
    "latent_dim": 32,
    "latent_mlp_ratio": 4,
    "latent_num_heads": 4,
    "tape_dim": 24,
    "tape_mlp_ratio": 2,
    "rw_num_heads": 2,
    "image_height": 8,
    "image_width": 8,
    "patch_size": 2,
    "num_classes": 9,
    "self_cond": "latent",
    "time_on_latent": True,
    "cond_on_latent": True,
    "time_scaling": 1000,
}


def attention(name: str, dim: int, context: int, inner: int, heads: int) -> dict[str, tuple[int, ...]]:
    """Keras's shapes of a ``MultiHeadAttention``."""
    size = inner // heads
    shapes = {f"{name}/query/kernel": (dim, heads, size), f"{name}/attention_output/kernel": (heads, size, dim)}
    shapes |= {f"{name}/{part}/kernel": (context, heads, size) for part in ("key", "value")}
    shapes |= {f"{name}/{part}/bias": (heads, size) for part in ("query", "key", "value")}
    return shapes | {f"{name}/attention_output/bias": (dim,)}


def norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/gamma": (dim,), f"{name}/beta": (dim,)}


def dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def mlp(name: str, dim: int, ratio: int) -> dict[str, tuple[int, ...]]:
    return norm(f"{name}/ln", dim) | dense(f"{name}/dense1", dim, dim * ratio) | dense(f"{name}/dense2", dim * ratio, dim)


def exchange(name: str, dim: int, context: int, ratio: int) -> dict[str, tuple[int, ...]]:
    inner = f"{name}/transformer_decoder_layer"
    shapes = attention(f"{inner}/cross_mha", dim, context, min(dim, context), 2)
    shapes |= norm(f"{inner}/cross_mha/ln", dim) | norm(f"{inner}/cross_mha/enc_ln", context)
    return shapes | (mlp(f"{inner}/mlp/ffn", dim, ratio) if ratio else {})


def everything() -> dict[str, Tensor]:
    """Tensors of a network of many options: an own read of time and class, a convolution, both memories."""
    shapes: dict[str, tuple[int, ...]] = {"stem/kernel": (2, 2, 3, 24), "stem/bias": (24,)}
    shapes |= norm("stem_ln", 24) | dense("time_emb/dense0", 2, 8) | dense("time_emb/dense1", 8, 8) | dense("cond_proj", 9, 8)
    shapes |= {"latent_pos_emb_res/kernel": (7, 32), "tape_pos_emb_res/kernel": (16, 24)}
    for kind, dim, ratio in (("latent", 32, 4), ("tape", 24, 2)):
        shapes |= mlp(f"{kind}_prev_proj/ffn", dim, ratio) | norm(f"{kind}_prev_ln", dim)
    for block, layers in enumerate((2, 1)):
        shapes |= exchange(f"read_unit_{block}", 32, 24, 4) | exchange(f"read_cond_unit_{block}", 32, 8, 4)
        shapes |= exchange(f"write_unit_{block}", 24, 32, 2)
        for layer in range(layers):
            name = f"latent_processing_unit{block}/transformer_encoder{f'_{layer}' if layer else ''}"
            shapes |= attention(f"{name}/mha", 32, 32, 32, 4) | norm(f"{name}/mha/ln", 32) | mlp(f"{name}/mlp/ffn", 32, 4)
        shapes |= {f"conv_units_{block}/depthwise_conv/depthwise_kernel": (3, 3, 24, 1)}
        shapes |= {f"conv_units_{block}/depthwise_conv/bias": (24,)} | norm(f"conv_units_{block}/gn", 24)
        shapes |= {f"conv_units_{block}/pointwise_conv/kernel": (1, 1, 24, 24), f"conv_units_{block}/pointwise_conv/bias": (24,)}
    shapes |= norm("output_ln", 24) | dense("output_linear", 24, 12)
    return {f"tape/{name}:0": torch.randn(shape) for name, shape in shapes.items()}


# Names of variables -> attributes that lead to them in the official code, as its own checkpoints by TensorFlow 2.21 have them.
ATTRIBUTES = (
    (r"^(read|read_cond|write)_unit_(\d+)/transformer_decoder_layer/", r"\1_units/\2/dec_layers/0/"),
    (r"^latent_processing_unit(\d+)/transformer_encoder/", r"latent_processing_units/\1/enc_layers/0/"),
    (r"^latent_processing_unit(\d+)/transformer_encoder_(\d+)/", r"latent_processing_units/\1/enc_layers/\2/"),
    (r"^conv_units_(\d+)/", r"conv_units/\1/"),
    (r"cross_mha/ln/", "cross_ln/"),
    (r"cross_mha/enc_ln/", "enc_ln/"),
    (r"mha/ln/", "mha_ln/"),
    (r"mha/(query|key|value)/", r"mha/_\1_dense/"),
    (r"mha/attention_output/", "mha/_output_dense/"),
    (r"ffn/ln/", "layernorms/0/"),
    (r"ffn/dense", "mlp_layers/0/dense"),
    (r"^time_emb/dense", "time_emb/dense_"),
    (r"^(latent|tape)_pos_emb_res/kernel$", r"tape.S\1_pos_emb_res.Skernel"),
    (r"^(latent|tape)_pos_emb/kernel/vis_pos_embedding$", r"tape.S\1_pos_emb.Skernel.Svis_pos_embedding"),
)
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def attribute_key(owner: str, name: str) -> str:
    """Key of a variable in a checkpoint of the official training."""
    path = name.removeprefix("tape/").removesuffix(":0")
    for pattern, replacement in ATTRIBUTES:
        path = re.sub(pattern, replacement, path)
    return f"model/{owner}/{path}{VALUE}"


def test_an_official_checkpoint_is_converted_with_its_average(tmp_path: Path) -> None:
    """The network that learns, its average, the optimizer's moments within and beside them, counters: the average is taken."""
    average, learned = everything(), everything()
    state = {attribute_key("denoiser_ema", name): value for name, value in average.items()}
    state |= {attribute_key("denoiser", name): value for name, value in learned.items()}
    moment = attribute_key("denoiser", "tape/stem/kernel:0").replace(VALUE, f"/.OPTIMIZER_SLOT/optimizer/m{VALUE}")
    state |= {moment: torch.ones(2, 2, 3, 24), f"optimizer/_variables/1{VALUE}": torch.ones(3)}
    state |= {f"global_step{VALUE}": torch.tensor(150_000), f"save_counter{VALUE}": torch.tensor(15)}
    checkpoint = read_checkpoints([write_bundle(tmp_path / "ckpt-150000", state, num_shards=2)])
    parts, left_out = choose_parts(checkpoint.parts, None)
    assert [part.network for part in parts] == ["denoiser_ema"] and [part.network for part in left_out] == ["denoiser"]
    for wanted, expected in ((None, average), ("denoiser", learned)):
        parts, _ = choose_parts(checkpoint.parts, wanted)
        converted = recognise(checkpoint, parts, None, None).build()["model"].state_dict()
        by_name = [NetworkPart(Path("rin.npz"), None, expected)]
        same = recognise(Checkpoint(by_name, {}, []), by_name, None, None).build()["model"].state_dict()
        assert converted.keys() == same.keys() and all(torch.equal(converted[key], same[key]) for key in same)


def test_attributes_of_positions_may_be_their_own() -> None:
    assert [plain_name(f"{kind}_pos_emb") for kind in ("latent", "tape")] == [
        "latent_pos_emb/kernel/vis_pos_embedding",
        "tape_pos_emb/kernel/vis_pos_embedding",
    ]
    assert plain_name("tape_pos_emb_res") == "tape_pos_emb_res/kernel"


# Of configs/config_diffusion_imagenet64.py of the repository.
IMAGENET_64 = CONFIG | {
    "num_layers": "4,4,4,4",
    "latent_slots": 128,
    "latent_dim": 768,
    "latent_num_heads": 16,
    "tape_dim": 512,
    "tape_mlp_ratio": 4,
    "rw_num_heads": 16,
    "image_height": 64,
    "image_width": 64,
    "patch_size": 8,
    "num_classes": 1000,
}


def imagenet_64() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variables that the official code builds of that configuration."""
    shapes: dict[str, tuple[int, ...]] = {"stem/kernel": (8, 8, 3, 512), "stem/bias": (512,)} | norm("stem_ln", 512)
    shapes |= dense("time_emb/dense0", 192, 768) | dense("time_emb/dense1", 768, 768) | dense("cond_proj", 1000, 768)
    shapes |= {"latent_pos_emb/kernel/vis_pos_embedding": (126, 768), "tape_pos_emb/kernel/vis_pos_embedding": (64, 512)}
    shapes |= mlp("latent_prev_proj/ffn", 768, 4) | norm("latent_prev_ln", 768)
    for block in range(4):
        for kind, dim, context in (("read", 768, 512), ("write", 512, 768)):
            name = f"{kind}_unit_{block}/transformer_decoder_layer"
            shapes |= attention(f"{name}/cross_mha", dim, context, 512, 16) | norm(f"{name}/cross_mha/ln", dim)
            shapes |= mlp(f"{name}/mlp/ffn", dim, 4)
        for layer in range(4):
            name = f"latent_processing_unit{block}/transformer_encoder{f'_{layer}' if layer else ''}"
            shapes |= attention(f"{name}/mha", 768, 768, 768, 16) | norm(f"{name}/mha/ln", 768) | mlp(f"{name}/mlp/ffn", 768, 4)
    return shapes | norm("output_ln", 512) | dense("output_linear", 512, 192)


def test_the_configuration_of_imagenet_64_has_its_places() -> None:
    source = get_source("rin")
    shapes = imagenet_64()
    state = {attribute_key("x", name).split("/", 2)[2].removesuffix(VALUE): shape for name, shape in shapes.items()}
    with torch.device("meta"):
        tensors = {key.replace(".S", "/"): torch.empty(shape) for key, shape in state.items()}
        told = source.recognise(tensors)
        assert told is not None and {key: told[key] for key in IMAGENET_64} == IMAGENET_64
        network = source.build(told)["model"]
        converted = source.convert_state("model", tensors, network)
    ours = network.state_dict()
    assert {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in ours.items()}
    assert (len(shapes), sum(value.numel() for value in converted.values())) == (408, 157_780_160)


def test_every_official_tensor_has_its_place_and_tells_its_options() -> None:
    state = everything()
    source = get_source("rin")
    parts = [NetworkPart(Path("rin.npz"), None, state)]
    found = recognise(Checkpoint(parts, {}, []), parts, None, None)
    assert found.source.name == "rin"
    told = found.config
    assert (told["num_layers"], told["latent_slots"], told["image_height"]) == ("2,1", 7, 8)
    assert (told["self_cond"], told["conv_kernel_size"], told["cond_dim"]) == ("latent+tape", 3, 8)
    assert told["cond_decoupled_read"] and told["xattn_enc_ln"] and not told["time_on_latent"] and not told["cond_on_latent"]
    network = found.build()["model"]
    query = state["tape/read_unit_1/transformer_decoder_layer/cross_mha/query/kernel:0"]
    assert torch.equal(network.blocks[1].read.attention.query.weight, query.reshape(32, 24).t())
    second = state["tape/latent_processing_unit0/transformer_encoder_1/mha/attention_output/kernel:0"]
    assert torch.equal(network.blocks[0].process[1].attention.out.weight, second.reshape(32, 32).t())
    kernel = state["tape/conv_units_0/depthwise_conv/depthwise_kernel:0"]
    assert torch.equal(network.blocks[0].convolution.depthwise.weight[5, 0], kernel[:, :, 5, 0])
    with pytest.raises(UserError, match="lacks"):
        load_official(source, source.build(told), {key: value for key, value in state.items() if "gn/beta" not in key})


def test_what_a_checkpoint_does_not_tell_is_asked_for() -> None:
    state = {key: value for key, value in everything().items() if "pos_emb" not in key}
    parts = [NetworkPart(Path("rin.npz"), None, state)]
    found = recognise(Checkpoint(parts, {}, []), parts, None, None)
    assert found.config["tape_pos_encoding"] == "sin_cos"
    with pytest.raises(UserError, match="the checkpoint does not tell latent_slots of ImageTapeDenoiser"):
        found.build()


def test_the_pipeline_samples_as_officially() -> None:
    source = get_source("rin")
    config = CONFIG | {"train_schedule": "simple_linear", "infer_iterations": 250, "cond_dropout": 0.1, "guidance": 1.5}
    pipeline = source.pipeline(source.build(config), config)
    assert pipeline.sampling_defaults == {"num_inference_steps": 250, "guidance_scale": 2.5}
    options = pipeline.scheduler.config
    assert (options.method, options.step_variance, options.schedule, options.clip_sample) == (
        "ddpm",
        "large",
        "offset_cosine",
        True,
    )
    trained = pipeline.formulation.config
    assert (trained.schedule, trained.network_time, trained.time_scale, trained.loss) == (
        "simple_linear",
        "gamma",
        1000.0,
        "epsilon",
    )


def test_options_of_training_and_sampling_are_read() -> None:
    trained = formulation(CONFIG | {"pred_type": "v", "loss_type": "eps", "b_scale": 0.5, "normalize_noisy_input": True}).config
    assert (trained.prediction_type, trained.loss, trained.data_scale, trained.normalize_input) == (
        "v_prediction",
        "epsilon",
        0.5,
        True,
    )
    options = sampler(
        CONFIG | {"sampler_name": "ddpm@small", "x0_clip": "-1,1", "b_scale": 0.5, "td": 1.0, "infer_schedule": None}
    ).config
    assert (options.step_variance, options.clip_range, options.time_shift, options.schedule) == ("small", 2.0, 1.0, None)
    assert not sampler(CONFIG | {"x0_clip": ""}).config.clip_sample
    assert schedule_options("log@1,100,t") == {"schedule": "log", "start": 100.0, "end": 1.0}
    assert schedule_options("sigmoid@-3,3,0.9") == {"schedule": "sigmoid", "start": -3.0, "end": 3.0, "tau": 0.9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_width": 16},
            "image_width=16 of google-research/pix2seq is not supported here; supported: image_height 8, a square",
        ),
        ({"cond_on_latent_n": 2}, "cond_on_latent_n=2 of google-research/pix2seq is not supported here, as a class is one token"),
        ({"cond_on_latent_n": 0}, "cond_on_latent=True of google-research/pix2seq is not supported"),
        ({"conditional": "text"}, "conditional='text' of google-research/pix2seq is not supported here"),
        ({"conditional": "none"}, "conditional='none' of google-research/pix2seq is not supported here with cond_on_latent"),
        ({"num_layers": "2,x"}, 'num_layers of google-research/pix2seq must be counts of layers such as "4,4,4,4"'),
        ({"x0_clip": "0,1"}, 'x0_clip of google-research/pix2seq must be "auto", two numbers -b,b, or empty'),
        ({"train_schedule": "cubic"}, "train_schedule='cubic' of google-research/pix2seq is not supported here"),
        ({"infer_schedule": "sigmoid@1"}, "train_schedule='sigmoid@1' of google-research/pix2seq is not supported here"),
        ({"pred_type": "v"}, "pred_type 'v' of google-research/pix2seq has no loss of its own; give loss_type"),
        ({"self_cond": "eps"}, "self_cond='eps' of google-research/pix2seq is not supported here"),
        ({"self_cond_decay": 0.5}, "self_cond_decay=0.5 of google-research/pix2seq is not supported here"),
        ({"heads": 3}, "ImageTapeDenoiser option 'heads' of google-research/pix2seq is unknown here"),
    ],
)
def test_options_without_an_equal_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_source("rin").build(CONFIG | change)
