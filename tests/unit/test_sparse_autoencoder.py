"""Sparse autoencoders find what was planted, are saved as others read them, and steer; at strength 0 not at all."""

import json

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_sllm.cli import app
from hf_sllm.embedded import embedded_checkpoint
from hf_sllm.interpretability import (
    SparseAutoencoder,
    VectorBuffer,
    collect,
    fit,
    fit_vectors,
    load_sae,
    measure,
    recovered_loss,
    save_sae,
    steer,
    strangeness,
    turned,
)
from hf_sllm.interpretability.fitting import remove_radial_gradient, revived
from hf_sllm.interpretability.sparse_autoencoder import BANDWIDTH, count_above, match_norm


def planted(seed=0, width=32, factors=64, on=0.05, offset=2.0, noise=0.02, signed=False):
    """Directions `(factors, width)`, and a function that draws vectors of them with the factors' sizes."""
    draw = torch.Generator().manual_seed(1000 + seed)  # not the seed of `fit`, whose first directions they would be
    directions = normalize(torch.randn(factors, width, generator=draw), dim=1)
    center = offset * torch.randn(width, generator=draw)

    def vectors(count):
        sizes = (torch.rand(count, factors, generator=draw) < on) * (torch.rand(count, factors, generator=draw) + 0.5)
        if signed:
            sizes = sizes * torch.where(torch.rand(count, factors, generator=draw) < 0.5, -1.0, 1.0)
        return sizes @ directions + center + noise * torch.randn(count, width, generator=draw), sizes

    return directions, vectors


def fitted(vectors, steps, **settings):
    sample = vectors(8192)[0]
    return fit((vectors(512)[0] for _ in range(steps)), sample, steps, **{"normalize": "none", **settings})


def found(sae, directions):
    """Mean cosine of features with true directions, each with one of its own, the likest pairs first."""
    cosines = (normalize(sae.W_dec, dim=1) @ directions.T).abs()
    matched = []
    for _ in directions:
        best = cosines.argmax()
        matched.append(cosines.flatten()[best].item())
        cosines[best // len(directions)] = cosines[:, best % len(directions)] = -1
    return sum(matched) / len(matched)


@pytest.mark.parametrize(
    ("activation", "k", "bar"),
    [
        ("topk", 3, 0.96),
        pytest.param("relu", None, 0.95, marks=pytest.mark.slow),
        pytest.param("jumprelu", None, 0.92, marks=pytest.mark.slow),
        pytest.param("batchtopk", 3, 0.92, marks=pytest.mark.slow),
    ],
)
def test_planted_directions_are_found(activation, k, bar):
    directions, vectors = planted()
    sae = fitted(vectors, 1500 if activation == "topk" else 3000, features=64, activation=activation, k=k)
    figures = measure(sae, vectors(10_000)[0])
    assert found(sae, directions) >= bar and figures.dead <= 0.03
    if activation == "topk":
        assert figures.fvu <= 0.19
    if activation == "jumprelu":
        assert abs(figures.l0 - 3.19) <= 0.4


def test_an_untrained_one_finds_nothing():
    directions, vectors = planted()
    assert found(fitted(vectors, 0, features=64, k=3), directions) <= 0.5


def test_abstopk_finds_both_ends_of_a_direction_with_half_the_features():
    directions, vectors = planted(width=32, factors=48, on=4 / 48, offset=1.0, signed=True)
    abstopk, topk = (fitted(vectors, 1000, features=48, activation=one, k=4) for one in ("abstopk", "topk"))
    x, sizes = vectors(10_000)

    def both_ends(sae):
        f, cosines = sae.encode(x), normalize(sae.W_dec, dim=1) @ directions.T
        counted = 0
        for factor in range(48):
            feature = cosines[:, factor].abs().argmax()
            signed = f[:, feature] * cosines[feature, factor].sign()
            up, down = sizes[:, factor] > 0, sizes[:, factor] < 0
            counted += bool(
                cosines[feature, factor].abs() > 0.9
                and (signed[up] > 0).float().mean() > 0.5
                and (signed[down] < 0).float().mean() > 0.5
            )
        return counted / 48

    assert both_ends(abstopk) >= 0.85 and both_ends(topk) <= 0.1
    assert measure(abstopk, x).fvu <= 0.6 * measure(topk, x).fvu


def test_afa_takes_as_many_features_as_match_the_norm():
    directions, vectors = planted(width=128, factors=256, on=5 / 256, offset=1.0, noise=0.0)
    x, sizes = vectors(2000)
    center = (x - sizes @ directions).mean(0)
    some = (sizes > 0).any(1)  # of nothing, only rounding has a norm
    x, sizes, norms = x[some], sizes[some], directions.norm(dim=1)

    def taken(given):
        return (match_norm((given @ directions.T).relu(), norms, given.norm(dim=1)) > 0).sum(1).float()

    count = taken(x - center)
    assert abs(count.mean() - 5) <= 0.5
    assert torch.corrcoef(torch.stack([count, (sizes > 0).sum(1).float()]))[0, 1] >= 0.6
    assert taken(x).mean() > 50  # the control: with their offset, norms say nothing


def test_the_threshold_learns_as_if_its_step_had_a_slope():
    u, threshold = torch.randn(1_000_000), torch.full((1,), 0.5, requires_grad=True)
    count_above(u[:, None], threshold).mean().backward()
    density = torch.exp(torch.tensor(-0.125)) / (2 * torch.pi) ** 0.5
    assert torch.isclose(threshold.grad, -density, rtol=0.05) and BANDWIDTH < 0.1


def test_dead_features_alone_learn_from_what_is_left_over():
    torch.manual_seed(0)
    sae, x = SparseAutoencoder(8, 16, k=2), torch.randn(32, 8)
    dead = torch.arange(16) < 4
    revived(sae, sae.before_activation(x), torch.randn(32, 8), dead).backward()
    assert sae.W_enc.grad[:, dead].abs().sum() > 0 and sae.W_enc.grad[:, ~dead].abs().sum() == 0


def test_directions_keep_their_norm():
    _, vectors = planted()
    assert torch.allclose(fitted(vectors, 20, features=64, k=3).W_dec.norm(dim=1), torch.ones(64), atol=1e-5)
    sae = SparseAutoencoder(8, 16, k=2)
    (sae(torch.randn(4, 8)) ** 2).sum().backward()
    remove_radial_gradient(sae)
    assert (sae.W_dec.grad * sae.W_dec).sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("activation", ["relu", "topk", "abstopk", "jumprelu", "batchtopk"])
def test_saved_and_folded_it_gives_the_same(tmp_path, activation):
    _, vectors = planted()
    k = 3 if "topk" in activation else None
    sae = fitted(vectors, 10, features=64, activation=activation, k=k, normalize="whiten")
    save_sae(sae, tmp_path, site="latents")
    loaded, about = load_sae(tmp_path)
    x = vectors(100)[0]
    assert about["site"] == "latents" and torch.equal(loaded.encode(x), sae.encode(x))
    center, matrix = torch.randn(32), torch.randn(32, 32).double()
    matrix = torch.linalg.qr(matrix).Q.float() * 2
    inner = loaded.encode((x - center) @ matrix)
    assert torch.allclose(loaded.fold(center, matrix).encode(x), inner, atol=1e-4)


def test_saelens_reads_what_is_saved(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    _, vectors = planted()
    sae = fitted(vectors, 10, features=64, k=3)
    save_sae(sae, tmp_path)
    x = vectors(100)[0]
    assert torch.allclose(sae_lens.SAE.load_from_disk(str(tmp_path)).encode(x), sae.encode(x), atol=1e-5)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="k=None"):
        SparseAutoencoder(4, 8)
    with pytest.raises(ValueError, match="activation='gated'"):
        SparseAutoencoder(4, 8, "gated")
    with pytest.raises(FileNotFoundError, match="cfg.json"):
        load_sae(tmp_path)
    with pytest.raises(ValueError, match="normalize='whiten'"):
        fit([], torch.randn(9, 4), 1, 8, "afa", normalize="whiten")
    with pytest.raises(ValueError, match="site='latents'"), steer(None, None, 0, 1.0, 1.0, site="latents"):
        pass


def test_each_vector_leaves_the_buffer_once_and_mixed():
    documents = [torch.full((5 + number % 35, 1), float(number)) for number in range(1500)]
    batches = list(VectorBuffer(8192, 256).batches(documents))
    assert torch.equal(torch.cat(batches).sort(0).values, torch.cat(documents).sort(0).values)

    def of_one_document(batch):
        same = (batch == batch.T).float()
        return (same.sum() - len(batch)) / (len(batch) * (len(batch) - 1))

    mixed = torch.stack([of_one_document(batch) for batch in batches[:-1]]).mean()
    unmixed = torch.stack([of_one_document(batch) for batch in torch.cat(documents).split(256)[:-1]]).mean()
    assert mixed <= 0.01 < 0.05 < unmixed


def test_strange_is_what_features_cannot_build():
    _, vectors = planted(on=3 / 64, offset=1.0)
    sae = fitted(vectors, 1000, features=64, k=3)
    usual = vectors(2000)[0]
    root = torch.linalg.cholesky(torch.cov(usual.T) + 1e-6 * torch.eye(32))
    gaussian = usual.mean(0) + torch.randn(2000, 32, generator=torch.Generator().manual_seed(1)) @ root.T

    def told_apart(score):
        return (score(gaussian)[:, None] > score(usual)[None]).float().mean()

    inverse = torch.linalg.inv(root)
    mahalanobis = told_apart(lambda x: ((x - usual.mean(0)) @ inverse.T).norm(dim=1))
    by_features = told_apart(lambda x: strangeness(sae, x))
    assert by_features >= 0.8 and by_features >= mahalanobis + 0.15


def test_features_are_turned_in_what_a_model_writes():
    model = AutoModelForCausalLM.from_pretrained(embedded_checkpoint(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(embedded_checkpoint())
    rows = [
        {"text": "The dog was sad. He ran home. Mia saw it."},
        {"text": "Tom had a red ball. He lost it. He cried."},
    ] * 8
    vectors = collect(model, tokenizer, rows, "predicted_latents")
    assert vectors.text[0].strip() and len(vectors.text) == len(vectors.x) and vectors.sentence.max() >= 2
    sae = fit_vectors(vectors.x, 5, features=16, k=4)
    moved = turned(sae, vectors.x, 3, 2.0, 1.5)
    assert torch.allclose(moved - vectors.x, 3 * sae.W_dec[3].expand_as(moved), atol=1e-4)
    assert torch.equal(turned(sae, vectors.x, 3, 0.0, 1.5), vectors.x)

    ids = tokenizer("The dog was sad.", return_tensors="pt").input_ids
    plain = model(ids).logits
    with steer(model, sae, 3, 0.0, 1.0, "predicted_latents"):
        assert torch.equal(model(ids).logits, plain)
    with steer(model, sae, 3, 50.0, 1.0, "predicted_latents"):
        assert not torch.allclose(model(ids).logits, plain, atol=1e-2)
    assert torch.equal(model(ids).logits, plain)

    loss = recovered_loss(model, tokenizer, rows, sae)
    untouched = recovered_loss(model, tokenizer, rows, Same(sae))
    assert untouched.share == pytest.approx(1) and loss.clean == untouched.clean and loss.share < 1


class Same(torch.nn.Module):
    """What an autoencoder that loses nothing would be."""

    def __init__(self, like):
        super().__init__()

    def forward(self, x):
        return x


def test_the_commands_train_and_show(tmp_path):
    animals = ["dog", "cat", "bird", "fish"]
    rows = [
        {"text": f"The {a} was {m}. It ran to {n}. {n} saw the {a}."}
        for a in animals
        for m in ("sad", "big")
        for n in ("Tim", "Mia", "Tom", "Lily", "Ben", "Sue", "Max", "Anna")
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, data = embedded_checkpoint(), ["--data", str(tmp_path / "data.jsonl"), "--limit", "180"]
    settings = ["--features", "8", "--k", "2", "--steps", "60", "--output", str(tmp_path / "sae")]
    done = CliRunner().invoke(app, ["sae", "train", model, *data, *settings])
    assert done.exit_code == 0, (done.output, done.stderr)
    assert "loss recovered" in done.output and "untrained" in done.output
    shown = ["sae", "show", str(tmp_path / "sae"), "--model", model, *data, "--output", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, shown)
    assert done.exit_code == 0, (done.output, done.stderr)
    assert "explanations" in done.output and (tmp_path / "features.jsonl").is_file()
