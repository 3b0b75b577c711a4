"""Flips, norms and whitening, compared with their definitions and with another implementation."""

from __future__ import annotations

import numpy as np
import pytest

from alnumpy.postprocess import average_mirrored, l2_normalize, learn_whitening, whiten

RNG = np.random.default_rng(0)
MIX = RNG.normal(size=(12, 12)) * np.geomspace(1, 100, 12)  # mixes components of all magnitudes
CORRELATED = (RNG.normal(size=(300, 12)) @ MIX + RNG.normal(size=12) * 50).astype(np.float32)


def linear(vectors, whitening):
    """Whitened vectors before the division by the norm."""
    return (vectors.astype(np.float64) - whitening.mean) @ whitening.projection


def pairwise(vectors):
    return np.linalg.norm(vectors[:, None] - vectors, axis=2)


def test_l2_normalize():
    vectors = np.array([[3, 4], [0, 0], [1e-15, 0]], np.float32)
    np.testing.assert_allclose(l2_normalize(vectors), [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)


def test_average_mirrored():
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    weights = RNG.normal(size=(60, 7)).astype(np.float32)

    def forward(x):  # one by one, like an Embedder: BLAS's rows may depend on the batch
        return np.stack([np.tanh(picture.ravel() @ weights) for picture in x])

    calls = []
    averaged = average_mirrored(lambda x: calls.append(x) or forward(x), x)
    assert len(calls) == 1  # one call, so that "auto" chooses one backend for both
    np.testing.assert_allclose(averaged, (forward(x) + forward(np.flip(x, 3))) / 2)
    np.testing.assert_array_equal(averaged, average_mirrored(forward, np.flip(x, 3)))
    assert np.abs(averaged - forward(x)).max() > 0.1
    assert np.abs(averaged - average_mirrored(forward, np.flip(x, 2))).max() > 0.1


@pytest.mark.parametrize("dimensions", [1, 5, 12])
def test_the_training_vectors_get_mean_0_and_covariance_1(dimensions):
    whitened = linear(CORRELATED, learn_whitening([CORRELATED], dimensions))
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(whitened.T @ whitened / len(whitened), np.eye(dimensions), atol=1e-4)


def test_it_agrees_with_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    theirs = decomposition.PCA(4, whiten=True, svd_solver="full").fit(CORRELATED.astype(np.float64))
    ours = learn_whitening([CORRELATED], 4)
    assert ours.kept == pytest.approx(theirs.explained_variance_ratio_.sum())
    wanted = theirs.transform(CORRELATED.astype(np.float64)) * np.sqrt(300 / 299)  # they divide by N - 1
    found = linear(CORRELATED, ours)
    signs = np.sign((wanted * found).sum(0))  # an axis has no direction
    np.testing.assert_allclose(found, wanted * signs, atol=1e-3)
    unit = wanted * signs / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(whiten(CORRELATED, ours.mean, ours.projection), unit, atol=1e-3)


def test_distances_in_all_dimensions_are_mahalanobis():
    whitened = linear(CORRELATED, learn_whitening([CORRELATED], 12))[:30]
    inverse = np.linalg.inv(np.cov(CORRELATED.T.astype(np.float64), bias=True))
    difference = (CORRELATED[:30, None] - CORRELATED[:30]).astype(np.float64)
    wanted = np.einsum("ijk,kl,ijl->ij", difference, inverse, difference)
    np.testing.assert_allclose(pairwise(whitened) ** 2, wanted, rtol=1e-3, atol=1e-4)


def test_white_vectors_are_only_rotated():
    white = linear(CORRELATED, learn_whitening([CORRELATED], 12)).astype(np.float32)
    again = learn_whitening([white], 12)
    np.testing.assert_allclose(pairwise(linear(white, again)[:50]), pairwise(white[:50]), rtol=1e-3, atol=1e-3)
    centred = white - white.mean(0)  # so normalised distances rank like angles
    angles = pairwise(l2_normalize(centred[:50]))
    np.testing.assert_allclose(pairwise(whiten(white[:50], again.mean, again.projection)), angles, atol=1e-3)


def test_it_is_invariant_to_scale_origin_and_mixture():
    changed = (CORRELATED @ RNG.normal(size=(12, 12)) - 7).astype(np.float32)
    distances = [pairwise(linear(data, learn_whitening([data], 12))[:50]) for data in (CORRELATED, changed)]
    np.testing.assert_allclose(*distances, rtol=2e-3, atol=2e-3)


def test_blocks_do_not_matter():
    whole, parts = (learn_whitening(np.split(CORRELATED, at), 5) for at in ([], [1, 100, 100, 250]))
    signs = np.sign((whole.projection * parts.projection).sum(0))
    np.testing.assert_allclose(whole.projection, parts.projection * signs, atol=1e-7)
    np.testing.assert_allclose(whole.mean, parts.mean, rtol=1e-6)


def test_a_vector_has_the_same_bits_in_any_batch():
    many = np.tile(CORRELATED, (1, 20))
    mean, projection = many.mean(0), RNG.normal(size=(240, 33)).astype(np.float32)
    together = whiten(many, mean, projection)
    assert (together.dtype, together.shape) == (np.float32, (300, 33))
    for i in (0, 1, 7, 299):
        np.testing.assert_array_equal(together[i], whiten(many[i : i + 1], mean, projection)[0])
    assert whiten(many[:0], mean, projection).shape == (0, 33)


@pytest.mark.parametrize(
    ("embeddings", "rank"),
    [
        (CORRELATED[:5], 4),  # at most their number less one
        (CORRELATED[:, [0, 1, 2, 1, 0]], 3),  # components that repeat others
        (np.concatenate([CORRELATED, np.zeros((300, 3), np.float32)], 1), 12),  # constant components
        (np.repeat(CORRELATED[:3], 50, 0), 2),
        (np.repeat(CORRELATED[:1], 50, 0), 0),
        (CORRELATED[:1], 0),
        (CORRELATED[:0], 0),
    ],
)
def test_more_dimensions_than_axes_are_refused(embeddings, rank):
    if rank:
        whitening = learn_whitening([embeddings], rank)
        assert whitening.kept == pytest.approx(1)
        whitened = linear(embeddings, whitening)
        np.testing.assert_allclose(whitened.T @ whitened / len(whitened), np.eye(rank), atol=1e-2)
    for dimensions in (rank + 1, 0, -1):
        with pytest.raises(ValueError, match=f"{len(embeddings)} embeddings vary along {rank} axes"):
            learn_whitening([embeddings], dimensions)
    if len(embeddings) == 0:
        with pytest.raises(ValueError, match="0 embeddings vary along 0 axes"):
            learn_whitening([], 1)
