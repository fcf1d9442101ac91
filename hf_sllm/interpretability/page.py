"""One HTML page of features: it needs no network, and a record of each feature lies beside it for others to read.

Sentences are in the page once; a feature's examples are their numbers. So a thousand features take a few megabytes.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .explanations import Explanation, ExplanationScore, Sentences, check, from_tenths, side, sides

TOP, OF_EACH_TENTH, BINS, NEIGHBOURS = 20, 5, 50, 3

# Above this density a feature says little of any one sentence; steering by it moves everything.
DENSE = 0.1

# Below this score a feature is not called by its explanation.
GOOD_SCORE = 0.6


def feature_records(
    activations: torch.Tensor,
    vectors: Sentences,
    decoder: torch.Tensor,
    explanations: Sequence[Explanation] = (),
    scores: Sequence[ExplanationScore] = (),
    effects: Mapping[tuple[int, int], Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """What there is to say of each side of each feature that fires, the best explained first.

    Args:
        activations: `(N, m)` features of the vectors.
        vectors: The sentences.
        decoder: `(m, d)`, the direction of each feature.
        explanations, scores: Of the features, where there are any.
        effects: For a feature and sign, what turning it does: `pos_str`, `pos_values`, `neg_str`, `neg_values`, the
            tokens that it promotes and suppresses; and `steering`, `[strength, sentence]` for each strength.
        seed: Of the draws of examples.

    Returns:
        Dicts of plain values. `frac_nonzero`, `freq_hist_data_bar_heights`, `freq_hist_data_bar_values`, `activations`
        and the four of `effects` have the names that SAEDashboard gives them.

    Raises:
        ValueError: If there are not as many sentences as activations.
    """
    check(activations, vectors)
    draw = random.Random(seed)
    names = {(one.feature, one.sign): one.text for one in explanations}
    figures = {(one.feature, one.sign): one for one in scores}
    by_cosine = closest(torch.nn.functional.normalize(decoder.float(), dim=-1))
    centred = activations.float() - activations.float().mean(0)
    by_correlation = closest(torch.nn.functional.normalize(centred.T, dim=-1))
    records = []
    for feature, sign in sides(activations):
        values = side(activations, feature, sign)
        fires = values[values > 0]
        heights, edges = torch.histogram(fires.double().cpu(), bins=BINS)
        figure = figures.get((feature, sign))
        strongest = values.argsort(descending=True, stable=True)[: min(TOP, len(fires))].tolist()
        records.append(
            {
                "feature": feature,
                "sign": sign,
                "explanation": names.get((feature, sign), ""),
                "score": None if figure is None else round(figure.own, 3),
                "rotated": None if figure is None else round(figure.rotated, 3),
                "frac_nonzero": round(len(fires) / len(values), 5),
                "freq_hist_data_bar_heights": heights.int().tolist(),
                "freq_hist_data_bar_values": [float(f"{edge:.4g}") for edge in edges[:-1].tolist()],
                "activations": examples(strongest, values, vectors),
                "tenths": examples(from_tenths(values, 10 * OF_EACH_TENTH, draw), values, vectors),
                "cosine": by_cosine[feature],
                "correlation": by_correlation[feature],
                **(effects or {}).get((feature, sign), {}),
            }
        )
    return sorted(records, key=lambda record: -(record["score"] or 0.0))


def examples(chosen: Sequence[int], values: torch.Tensor, vectors: Sentences) -> list[list[float]]:
    """`[sentence, activation, times]` of each: equal sentences are one, with how many there are."""
    found: dict[str, list[float]] = {}
    for i in chosen:
        if vectors.text[i] in found:
            found[vectors.text[i]][2] += 1
        else:
            found[vectors.text[i]] = [i, float(f"{float(values[i]):.4g}"), 1]
    return list(found.values())


def closest(rows: torch.Tensor) -> list[list[int]]:
    """For each of unit rows the others with the largest products."""
    products = (rows @ rows.T).fill_diagonal_(-2)
    return products.topk(min(NEIGHBOURS, len(rows) - 1)).indices.tolist()


def write_page(records: Sequence[Mapping[str, Any]], vectors: Sentences, path: Path, about: Mapping[str, str]) -> None:
    """Writes the page, and `features.jsonl` beside it with a line for each record, its sentences in words.

    Args:
        records: Of `feature_records`.
        vectors: The sentences of these.
        path: The HTML file.
        about: What the features are of: model, data, their hashes; shown as it is.
    """
    documents = [int(i) for i in vectors.document]
    data = {
        "about": dict(about),
        "sentences": list(vectors.text),
        "documents": documents,
        "features": list(records),
        "dense": DENSE,
        "good": GOOD_SCORE,
    }
    # Within a script element only `<` could end it.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    path.write_text(template.replace("__DATA__", text), encoding="utf-8")
    with (path.parent / "features.jsonl").open("w", encoding="utf-8") as file:
        for record in records:
            shown = {
                key: [
                    {"text": vectors.text[int(i)], "value": value, "count": count, "document": documents[int(i)]}
                    for i, value, count in record[key]
                ]
                for key in ("activations", "tenths")
            }
            file.write(json.dumps({**record, **shown}, ensure_ascii=False) + "\n")


__all__ = ["feature_records", "write_page"]
