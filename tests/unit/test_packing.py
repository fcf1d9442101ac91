"""Several texts in one row, as packing and padding-free training lay them, are what they are in rows of their own."""

import pytest
import torch
from models import BACKBONES, BOUNDARIES, OPTIONS, option_model, padded, random_ids, tiny_backbone, tiny_sllm
from transformers import DataCollatorWithFlattening

from hf_sllm.modeling import SentenceVaeModel

LENGTHS = (31, 7, 1, 22)
TEXTS = [random_ids(1, length, seed=length)[0] for length in LENGTHS]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def positions(texts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.arange(len(text)) for text in texts])[None]


def flattened(**options) -> dict:
    return DataCollatorWithFlattening(**options)([{"input_ids": text.tolist()} for text in TEXTS])


def gradients(model, **inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(3)  # what is drawn in training is drawn alike
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("option", [*OPTIONS, "paper"])
def test_logits_and_gradients_are_those_of_rows_of_their_own(option, implementation):
    model = option_model(option)
    model.set_attn_implementation(implementation)
    packed = {"input_ids": torch.cat(TEXTS)[None], "position_ids": positions(TEXTS)}
    token_ids, mask = padded(TEXTS, "right")
    rows = {"input_ids": token_ids, "attention_mask": mask}
    alone = [model(text[None]).logits[0] for text in TEXTS]
    torch.testing.assert_close(model(**packed).logits[0], torch.cat(alone), **TOLERANCE)
    packed["labels"], rows["labels"] = packed["input_ids"], token_ids.masked_fill(mask == 0, -100)
    for training in (False, True):
        found, expected = (gradients(model.train(training), **inputs) for inputs in (packed, rows))
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], **TOLERANCE, msg=name)


def test_each_term_of_the_loss_and_the_stop_logits_are_those_of_rows_of_their_own():
    model = tiny_sllm(
        stop_head=True, reconstruction_weight=0.5, bag_of_words_weight=0.1, next_latent_weight=0.1, kl_weight=0.1
    ).train()
    token_ids, mask = padded(TEXTS, "right")
    torch.manual_seed(3)
    rows = model(token_ids, mask, labels=token_ids.masked_fill(mask == 0, -100))
    for skip_logits in (False, True):
        torch.manual_seed(3)
        packed = torch.cat(TEXTS)[None]
        outputs = model(packed, position_ids=positions(TEXTS), labels=packed, skip_logits=skip_logits)
        assert len(outputs.losses) == 6
        torch.testing.assert_close(outputs.losses, rows.losses, **TOLERANCE)
        torch.testing.assert_close(outputs.stop_logits[0], rows.stop_logits[mask.bool()], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_position_ids": False, "return_seq_idx": True},
        {"return_position_ids": False, "return_flash_attn_kwargs": True},
        {"return_seq_idx": True, "return_flash_attn_kwargs": True},
    ],
)
def test_what_transformers_collator_flattens_goes_straight_in(options):
    model, batch = tiny_sllm(), flattened(**options)
    logits = torch.cat([model(text[None]).logits[0] for text in TEXTS])
    outputs = model(**batch)
    torch.testing.assert_close(outputs.logits[0], logits, **TOLERANCE)
    scored = [model(text[None], labels=text[None], num_items_in_batch=1).loss for text in TEXTS]
    torch.testing.assert_close(outputs.loss, sum(scored) / (sum(LENGTHS) - len(LENGTHS)), **TOLERANCE)
    # What has no LM head takes the same: so TRL calls it.
    states = model.model(**{name: values for name, values in batch.items() if name != "labels"}).last_hidden_state
    torch.testing.assert_close(model.compute_logits(states), outputs.logits, **TOLERANCE)


@pytest.mark.parametrize("option", ["default", "memory", "paper"])
def test_nothing_of_a_text_is_in_another(option):
    model, packed = option_model(option), torch.cat(TEXTS)[None]
    ends = torch.tensor(LENGTHS).cumsum(0)
    embeds = model.get_input_embeddings()(packed).detach().requires_grad_()
    for number, (text, end) in enumerate(zip(TEXTS, ends, strict=True)):
        labels = torch.full_like(packed, -100)
        own = slice(end - len(text), end)
        labels[:, own] = packed[:, own]
        loss = model(packed, inputs_embeds=embeds, position_ids=positions(TEXTS), labels=labels).loss
        gradient = torch.autograd.grad(loss, embeds)[0][0].abs().sum(-1)
        assert (gradient[own].sum() > 0) == (len(text) > 1), number
        gradient[own] = 0
        assert (gradient == 0).all(), number


@torch.no_grad()
def test_rows_of_a_batch_may_hold_different_numbers_of_texts_and_end_in_padding():
    model = tiny_sllm()
    token_ids, mask = padded([torch.cat(TEXTS), torch.cat(TEXTS[1:]), TEXTS[0]], "right")
    position_ids, _ = padded([positions(TEXTS)[0], positions(TEXTS[1:])[0], torch.arange(31)], "right")
    labels = token_ids.masked_fill(mask == 0, -100)
    outputs = model(token_ids, mask, position_ids, labels=labels, num_items_in_batch=1)
    texts = [*TEXTS, *TEXTS[1:], TEXTS[0]]
    alone = torch.cat([model(text[None]).logits[0] for text in texts])
    torch.testing.assert_close(outputs.logits[mask.bool()], alone, **TOLERANCE)
    torch.testing.assert_close(outputs.logits[2, 31:], outputs.logits[2, 30:31].expand(30, -1))
    scored = [model(text[None], labels=text[None], num_items_in_batch=1).loss for text in texts]
    torch.testing.assert_close(outputs.loss, sum(scored), **TOLERANCE)
    # Bounds may count the tokens alone, or the padding after them as a text of its own.
    for bounds in ([0, 7, 8, 30], [0, 7, 8, 30, 61]):
        bounds = torch.tensor(bounds, dtype=torch.int32)
        logits = model(token_ids[1:2], mask[1:2], cu_seq_lens_q=bounds, cu_seq_lens_k=bounds).logits
        torch.testing.assert_close(logits[0, :30], outputs.logits[1, :30], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("by", ["position_ids", "seq_idx"])
def test_padding_within_a_text_and_between_texts_does_not_count(by):
    model = tiny_sllm()
    mask = torch.ones(1, 60, dtype=torch.long)
    mask[:, [0, 1, 9, 10, 35, 36, 37]] = 0
    token_ids, last = torch.zeros_like(mask), torch.tensor(31 - 1)
    token_ids[mask.bool()] = torch.cat([TEXTS[0], TEXTS[3]])
    rank = mask.cumsum(1) - 1
    given = {
        "position_ids": torch.where(rank > last, rank - last - 1, rank).masked_fill(mask == 0, 0),
        "seq_idx": (rank > last).long().masked_fill(mask == 0, -1),
    }
    logits = model(token_ids, mask, **{by: given[by]}).logits[mask.bool()]
    alone = torch.cat([model(text[None]).logits[0] for text in (TEXTS[0], TEXTS[3])])
    torch.testing.assert_close(logits, alone, **TOLERANCE)


@torch.no_grad()
def test_logits_to_keep_and_hidden_states_are_of_the_packed_row():
    model, packed, position_ids = tiny_sllm(stop_head=True), torch.cat(TEXTS)[None], positions(TEXTS)
    whole = model(packed, position_ids=position_ids, output_hidden_states=True)
    last = model(packed, position_ids=position_ids, output_hidden_states=True, logits_to_keep=24)
    torch.testing.assert_close(last.logits, whole.logits[:, -24:], **TOLERANCE)
    torch.testing.assert_close(last.stop_logits, whole.stop_logits[:, -24:], **TOLERANCE)
    kept = torch.tensor([2, 40])
    torch.testing.assert_close(
        model(packed, position_ids=position_ids, logits_to_keep=kept).logits, whole.logits[:, kept], **TOLERANCE
    )
    alone = [model(text[None], output_hidden_states=True).hidden_states for text in TEXTS]
    for layer, layers in enumerate(zip(*alone, strict=True)):
        torch.testing.assert_close(whole.hidden_states[layer], torch.cat(layers, 1), **TOLERANCE)
        torch.testing.assert_close(last.hidden_states[layer], whole.hidden_states[layer][:, -24:], **TOLERANCE)


@torch.no_grad()
def test_explicit_sentences_are_those_of_rows_of_their_own():
    model, packed = tiny_sllm(), torch.cat(TEXTS)[None]
    sentence_ids = torch.arange(packed.shape[1])[None] // 5  # one of them goes on where the text ends
    logits = model(packed, sentence_ids=sentence_ids, position_ids=positions(TEXTS)).logits
    parts = zip(TEXTS, sentence_ids[0].split(LENGTHS), strict=True)
    alone = [model(text[None], sentence_ids=ids[None]).logits for text, ids in parts]
    torch.testing.assert_close(logits, torch.cat(alone, 1), **TOLERANCE)


def test_shifted_labels_never_ask_for_the_next_text():
    model, packed, position_ids = tiny_sllm(), torch.cat(TEXTS)[None], positions(TEXTS)
    shifted = torch.nn.functional.pad(packed[:, 1:], (0, 1), value=-100)
    found = model(packed, position_ids=position_ids, shift_labels=shifted).loss
    torch.testing.assert_close(found, model(packed, position_ids=position_ids, labels=packed).loss, **TOLERANCE)


def test_each_part_is_called_once_however_many_texts_there_are():
    """Where weights are sharded, every process has to call every part equally often."""
    model, calls = tiny_sllm(), []
    parts = (model.model.sentence_encoder.model, model.model.language_model, model.model.sentence_decoder.model)
    for part in (*parts, model.lm_head):
        part.register_forward_hook(lambda module, *_: calls.append(module))
    for texts in (TEXTS[:1], TEXTS[:2], TEXTS):
        packed = torch.cat(texts)[None]
        model(packed, position_ids=positions(texts), labels=packed).loss.backward()
        assert len(calls) == len(set(calls)) == 4
        calls.clear()


@torch.no_grad()
@pytest.mark.parametrize("at_padding", [0, 1])
def test_positions_that_generate_makes_of_a_mask_begin_one_text(at_padding):
    model = tiny_sllm()
    token_ids, mask = padded(TEXTS[:2], "left")
    position_ids = (mask.cumsum(1) - 1).masked_fill(mask == 0, at_padding)
    expected = model(token_ids, mask).logits
    torch.testing.assert_close(model(token_ids, mask, position_ids).logits, expected)
    torch.testing.assert_close(model(token_ids, mask, position_ids, use_cache=True).logits, expected, **TOLERANCE)
    torch.testing.assert_close(model(token_ids[:1], position_ids=torch.arange(31)[None]).logits, expected[:1])


@torch.no_grad()
@pytest.mark.parametrize("option", ["default", "short_context", "memory"])
def test_short_texts_share_the_decoders_rows(option):
    model, shapes = option_model(option), []
    decoder = model.model.sentence_decoder.model
    decoder.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["inputs_embeds"].shape), with_kwargs=True
    )
    texts = [random_ids(1, length, seed=length)[0] for length in (40, 3, 12, 5, 9, 1)]
    alone = [model(text[None]).logits[0] for text in texts]
    longest = shapes[0][1]
    shapes.clear()
    torch.testing.assert_close(
        model(torch.cat(texts)[None], position_ids=positions(texts)).logits[0], torch.cat(alone), **TOLERANCE
    )
    assert [shape[:2] for shape in shapes] == [(2, longest)]


def test_a_sentence_vae_reads_texts_as_in_rows_of_their_own():
    model = SentenceVaeModel.from_backbone(tiny_backbone(), boundary_token_ids=BOUNDARIES, stop_head=True)
    token_ids, mask = padded(TEXTS, "right")
    rows = model(token_ids, mask, labels=token_ids.masked_fill(mask == 0, -100), output_hidden_states=True)
    batch = flattened(return_seq_idx=True)
    batch["labels"] = batch["input_ids"]  # here the first token of a text is scored too
    outputs = model(**batch, output_hidden_states=True)
    torch.testing.assert_close(outputs.loss, rows.loss, **TOLERANCE)
    for name in ("logits", "stop_logits"):
        torch.testing.assert_close(outputs[name][0], rows[name][mask.bool()], **TOLERANCE)
    torch.testing.assert_close(outputs.hidden_states[-1][0], rows.hidden_states[-1][mask.bool()], **TOLERANCE)
    with pytest.raises(TypeError, match="no argument label_smoothing"):
        model(**batch, label_smoothing=batch["labels"])


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def test_flex_attention_gives_the_logits_of_sdpa():
    """On CPU it runs forward only; its kernel would take a minute to compile."""
    model, packed = tiny_sllm(), {"input_ids": torch.cat(TEXTS)[None], "position_ids": positions(TEXTS)}
    expected = model(**packed).logits
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(**packed).logits, expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_backbone_reads_them_as_in_rows_of_their_own(backbone):
    model = tiny_sllm(backbone)
    logits = model(torch.cat(TEXTS)[None], position_ids=positions(TEXTS)).logits
    torch.testing.assert_close(logits, torch.cat([model(text[None]).logits for text in TEXTS], 1), **TOLERANCE)
