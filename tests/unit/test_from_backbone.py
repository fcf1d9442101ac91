"""`from_backbone` takes what `from_pretrained` takes: what was asked for is in memory, in every part, and on disk."""

import json

import pytest
import torch
from models import BOUNDARIES, random_ids, tiny_backbone
from transformers import AutoModelForCausalLM, TorchAoConfig

from hf_sllm.modeling import SentenceVaeModel, SllmForCausalLM

GIVEN = {"boundary_token_ids": BOUNDARIES, "max_sentence_length": 9}
KINDS = [SllmForCausalLM, SentenceVaeModel]


@pytest.fixture
def folder(tmp_path):
    tiny_backbone().save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def parts(model) -> list:
    """The config of each part, as the model in memory has it."""
    return [module.config for module in model.modules() if hasattr(module, "set_attn_implementation")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "auto", None])
@pytest.mark.parametrize("loaded", [False, True])
def test_the_dtype_that_was_asked_for_is_in_memory_and_on_disk(folder, tmp_path, kind, dtype, loaded):
    backbone = AutoModelForCausalLM.from_pretrained(folder) if loaded else folder
    model = kind.from_backbone(backbone, dtype=dtype, **GIVEN)
    expected = torch.float32 if dtype in ("auto", None) else torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    model.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    named = [written["dtype"], *(written[name]["dtype"] for name in model.config.sub_configs)]
    assert {f"torch.{name}" for name in named} == {str(expected)}
    assert {parameter.dtype for parameter in kind.from_pretrained(tmp_path / "saved").parameters()} == {expected}


def test_a_backbone_that_is_converted_keeps_its_rotary_positions_exact():
    backbone, exact = tiny_backbone(), tiny_backbone()
    SllmForCausalLM.from_backbone(backbone, dtype=torch.bfloat16, **GIVEN)
    assert backbone.dtype == torch.bfloat16
    for one, other in zip(backbone.buffers(), exact.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("loaded", [False, True])
def test_every_part_has_the_attention_that_was_asked_for(folder, loaded):
    backbone = AutoModelForCausalLM.from_pretrained(folder) if loaded else folder
    for implementation in ("eager", "sdpa"):
        for kind in KINDS:
            model = kind.from_backbone(backbone, attn_implementation=implementation, **GIVEN)
            assert {config._attn_implementation for config in parts(model)} == {implementation}
    each = {"text_config": "eager", "sentence_decoder_config": "sdpa", "sentence_encoder_config": "eager"}
    config = SllmForCausalLM.from_backbone(backbone, attn_implementation=each, **GIVEN).config
    assert {name: getattr(config, name)._attn_implementation for name in each} == each


def test_without_one_every_part_has_the_attention_of_the_backbone(folder):
    backbone = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    config = SllmForCausalLM.from_backbone(backbone, **GIVEN).config
    assert {getattr(config, name)._attn_implementation for name in config.sub_configs} == {"eager"}


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_a_backbone_may_be_put_on_one_device(folder, device_map):
    model = SllmForCausalLM.from_backbone(folder, device_map=device_map, **GIVEN)
    assert model(random_ids(1, 9)).logits.isfinite().all()


@pytest.mark.gpu
def test_all_parts_follow_the_backbone_to_its_device(folder):
    model = SllmForCausalLM.from_backbone(folder, device_map={"": 0}, dtype=torch.bfloat16, **GIVEN)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    assert model(random_ids(1, 9).cuda()).logits.isfinite().all()


MODELING = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

class MineConfig(LlamaConfig):
    model_type = "mine"

class MineModel(LlamaModel):
    config_class = MineConfig

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = MineModel(config)
        self.post_init()
"""


def test_the_code_of_a_backbone_runs_where_it_is_trusted(folder, tmp_path):
    written = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"}
    written.update(model_type="mine", architectures=["MineForCausalLM"], auto_map=auto_map)
    (folder / "config.json").write_text(json.dumps(written))
    (folder / "mine.py").write_text(MODELING)
    model = SllmForCausalLM.from_backbone(folder, trust_remote_code=True, **GIVEN)
    assert type(model.model.language_model).__name__ == "MineModel"
    logits = model.eval()(random_ids(1, 9)).logits
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(SllmForCausalLM.from_pretrained(tmp_path / "saved")(random_ids(1, 9)).logits, logits)


@pytest.mark.parametrize(
    "given, says",
    [
        ({"dtype": "bf16"}, "`dtype` is 'bf16'.*`torch.bfloat16`"),
        ({"dtype": torch.int8}, "`dtype` is torch.int8"),
        ({"device_map": {"model": "cpu", "lm_head": "disk"}}, "cpu and disk.*save the wrapped model"),
        ({"device_map": "cpu", "loaded": True}, "`device_map` is 'cpu', and the backbone is a model already"),
        ({"trust_remote_code": True, "loaded": True}, "`trust_remote_code` is True, and .* model already"),
        ({"quantization_config": TorchAoConfig, "loaded": True}, "`quantization_config` is .* model already"),
    ],
)
def test_what_cannot_be_loaded_so_is_refused(folder, given, says):
    given = dict(given)
    backbone = tiny_backbone() if given.pop("loaded", False) else folder
    with pytest.raises(ValueError, match=says):
        SllmForCausalLM.from_backbone(backbone, **given, **GIVEN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name, says",
    [
        ("/nowhere/at/all", "is '/nowhere/at/all': there is no such folder"),
        ("no/such-model", "is 'no/such-model': there is no such folder.*`token` if it is gated.*hf download"),
        ("{empty}", "is .*: this folder has no config.json"),
    ],
)
def test_a_name_that_leads_nowhere_is_said_in_one_sentence(tmp_path, kind, name, says):
    name = name.format(empty=tmp_path)
    with pytest.raises(OSError, match=f"`backbone` {says}"):
        kind.from_backbone(name, **GIVEN)
    with pytest.raises(OSError, match=f"`backbone` {says}"):
        kind.from_backbone(name)
    with pytest.raises(OSError, match=f"`pretrained_model_name_or_path` {says}"):
        kind.from_pretrained(name)


@pytest.mark.parametrize("name", [None, 3, ""])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(TypeError, match="`backbone` is .*pass the name or the path"):
        SllmForCausalLM.from_backbone(name, **GIVEN)
