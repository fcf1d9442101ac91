"""Quantised backbones: they stay quantised, what is copied of them is float, and adapters train on them (QLoRA)."""

import pytest
import torch
from models import BOUNDARIES, random_ids, tiny_backbone
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, QuantoConfig, TorchAoConfig

from hf_sllm.modeling import SentenceVaeModel, SllmForCausalLM
from hf_sllm.modeling.backbone_quantized import is_float
from hf_sllm.training.adapters import AROUND_BACKBONE

GIVEN = {"boundary_token_ids": BOUNDARIES, "max_sentence_length": 9}


def torchao():
    return TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())


# The package of each quantiser, and its config.
QUANTIZERS = {
    "torchao": ("torchao", torchao),
    "quanto": ("optimum.quanto", lambda: QuantoConfig(weights="int8")),
    "bitsandbytes 8 bits": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes 4 bits": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_4bit=True)),
}
SAVED = [name for name in QUANTIZERS if name != "quanto"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def backbone_to_quantize():
    """As wide as the blocks in which 4 bits share a scale."""
    return tiny_backbone(hidden_size=64, intermediate_size=64, head_dim=16)


@pytest.fixture
def quantized(tmp_path):
    """The wrap of a tiny backbone that a quantiser quantised, by its name or loaded before."""

    def make(name: str, loaded: bool = False, kind: type = SllmForCausalLM, **given):
        package, config = QUANTIZERS[name]
        pytest.importorskip(package)
        backbone_to_quantize().save_pretrained(tmp_path / "backbone")
        given = {"quantization_config": config(), "device_map": DEVICE, **given}
        if loaded:
            return kind.from_backbone(AutoModelForCausalLM.from_pretrained(tmp_path / "backbone", **given), **GIVEN)
        return kind.from_backbone(tmp_path / "backbone", **given, **GIVEN)

    return make


def kinds_of_weights(model: SllmForCausalLM) -> tuple[set[bool], set[bool]]:
    """Whether the weights of the backbone's linear layers are float, and whether all others are."""
    backbone = model.model.language_model
    linear = [m.weight for m in backbone.modules() if hasattr(m, "in_features")]
    own = {id(weight) for weight in linear}
    others = [weight for weight in model.parameters() if id(weight) not in own]
    return set(map(is_float, linear)), set(map(is_float, others))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_linear_layers_of_the_backbone_are_quantised(quantized, name, loaded, dtype):
    model = quantized(name, loaded, dtype=dtype)
    assert kinds_of_weights(model) == ({False}, {True})
    parts = (model.model.sentence_encoder, model.model.sentence_decoder, model.model.latent_input, model.lm_head)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {dtype}
    exact = SllmForCausalLM.from_backbone(backbone_to_quantize(), **GIVEN).to(dtype)
    for part in ("sentence_encoder", "sentence_decoder"):
        given = getattr(exact.model, part).model.state_dict()
        for key, value in getattr(model.model, part).model.state_dict().items():
            torch.testing.assert_close(value.cpu(), given[key], atol=0.01 if "4" not in name else 0.1, rtol=0)
    assert model(random_ids(2, 20).to(model.device)).logits.isfinite().all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_adapters_on_a_quantised_backbone_learn(quantized, name, tmp_path):
    model, token_ids = quantized(name), random_ids(2, 20)
    token_ids = token_ids.to(model.device)
    # Without new parts: what is learned, the adapters of the quantised layers learn.
    where = r".*language_model.*\.(q_proj|v_proj|up_proj|down_proj)"
    adapted = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=where)).train()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=3e-2), []
    for _ in range(12):
        loss = adapted(input_ids=token_ids, labels=token_ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    logits = adapted.eval()(input_ids=token_ids).logits
    adapted.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(quantized(name), tmp_path / "adapter")
    # The new parts begin random, and are other ones there.
    again.load_state_dict({k: v for k, v in adapted.state_dict().items() if "language_model" not in k}, strict=False)
    # On a CPU bitsandbytes computes with 4 bits in one of two ways, one of them rough.
    near = {"rtol": 0, "atol": 0.1 if "4" in name else 1e-5}
    torch.testing.assert_close(again.eval()(input_ids=token_ids).logits, logits, **near)


@pytest.mark.parametrize("name", SAVED)
def test_a_quantised_model_is_saved_and_loaded(quantized, name, tmp_path):
    model = quantized(name, dtype=torch.bfloat16).eval()
    token_ids = random_ids(2, 20).to(model.device)
    model.save_pretrained(tmp_path / "saved")
    again = SllmForCausalLM.from_pretrained(tmp_path / "saved", device_map=DEVICE)
    assert kinds_of_weights(again) == ({False}, {True}) and again.dtype == torch.bfloat16
    assert torch.equal(again(token_ids).logits, model(token_ids).logits)
    lora = {"target_modules": r".*language_model.*q_proj", "modules_to_save": AROUND_BACKBONE}
    adapted = get_peft_model(again, LoraConfig(task_type="CAUSAL_LM", **lora))
    adapted(input_ids=token_ids, labels=token_ids).loss.backward()


def test_what_cannot_be_saved_is_refused_before_anything_is_written(quantized, tmp_path):
    with pytest.raises(ValueError, match="`quantization_config` is of 'quanto'.*Save adapters alone"):
        quantized("quanto").save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_sentence_vae_of_a_quantised_backbone_is_float(quantized, name, tmp_path):
    model = quantized(name, kind=SentenceVaeModel)
    assert all(map(is_float, model.parameters()))
    model.save_pretrained(tmp_path / "saved")
    again = SentenceVaeModel.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[key], value.cpu()) for key, value in model.state_dict().items())


class RoundedLinear(nn.Module):
    """A quantised layer of a kind that nobody knows: integers and a scale for each row."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("integers", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.integers.to(inputs.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_layers_of_any_quantiser_are_copied_as_what_they_compute(name, tmp_path):
    backbone = tiny_backbone(name)
    for path, module in list(backbone.base_model.named_modules()):
        if type(module) is nn.Linear:
            if module.bias is not None:
                nn.init.normal_(module.bias)
            backbone.base_model.set_submodule(path, RoundedLinear(module))
    bias = {path: m.bias for path, m in backbone.named_modules() if isinstance(m, RoundedLinear)}
    model = SllmForCausalLM.from_backbone(backbone, encoder_layers=[2], **GIVEN)
    rounded = [m for m in backbone.base_model.modules() if isinstance(m, nn.ModuleList)][0][2]
    copied = [m for m in model.model.sentence_encoder.model.modules() if isinstance(m, nn.ModuleList)][0][0]
    for path, module in rounded.named_modules():
        if isinstance(module, RoundedLinear):
            own = copied.get_submodule(path)
            assert type(own) is nn.Linear
            torch.testing.assert_close(own.weight, module.integers * module.scale)
            assert own.bias is None or torch.equal(own.bias, module.bias)
    assert {path: m.bias for path, m in backbone.named_modules() if isinstance(m, RoundedLinear)} == bias
    with pytest.raises(ValueError, match="quantised after it was loaded"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`dtype` is 'bfloat16', and the backbone is quantised"):
        SllmForCausalLM.from_backbone(backbone, dtype="bfloat16", **GIVEN)
