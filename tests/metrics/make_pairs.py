"""Makes pairs.json, random pairs of masks with their metrics by medpy, and wilcoxon.json, tests by scipy.

Run in this folder with medpy 0.5.2, numpy and scipy:  python make_pairs.py

A pair's masks are hexadecimal, 8 voxels to two digits, the first voxel in the highest bit, x
fastest, then y, then z. Pairs with one slice are 2D. null stands for 0/0 and for distances to
an empty mask.
"""

import json

import numpy as np
from medpy.metric import binary
from scipy import ndimage, stats

random = np.random.default_rng(20210611)


def blob(shape):
    """A smooth random shape, as shape [z, y, x] or [y, x]."""
    noise = ndimage.gaussian_filter(random.standard_normal(shape), random.uniform(0.8, 2.5), mode="nearest")
    return noise > np.quantile(noise, random.uniform(0.5, 0.95))


def box(shape, low=0.0, high=1.0):
    """A box within a fraction of the first axis, often touching the border."""
    mask = np.zeros(shape, bool)
    limits = [(int(low * shape[0]), max(int(high * shape[0]), int(low * shape[0]) + 1))]
    limits += [(0, length) for length in shape[1:]]
    corners = [np.sort(random.integers(start, end, 2)) for start, end in limits]
    mask[tuple(slice(first, last + 1) for first, last in corners)] = True
    return mask


def voxel(shape):
    mask = np.zeros(shape, bool)
    mask[tuple(random.integers(0, length) for length in shape)] = True
    return mask


def altered(mask):
    """What a network might predict: shifted, grown or shrunk, with a stray voxel now and then."""
    result = ndimage.shift(mask, random.integers(-2, 3, mask.ndim), order=0)
    change = random.choice(["grow", "shrink", "none"])
    if change == "grow":
        result = ndimage.binary_dilation(result)
    if change == "shrink":
        result = ndimage.binary_erosion(result)
    return result | voxel(mask.shape) if random.random() < 0.5 else result


def alike(shape):
    mask = blob(shape)
    return altered(mask), mask


KINDS = {
    "alike": (12, alike),
    "blobs": (5, lambda shape: (blob(shape), blob(shape))),
    "boxes": (5, lambda shape: (box(shape), box(shape))),
    "disjoint": (4, lambda shape: (box(shape, 0.0, 0.5), box(shape, 0.5, 1.0))),
    "voxels": (4, lambda shape: (voxel(shape), voxel(shape))),
    "voxel and blob": (3, lambda shape: (voxel(shape), blob(shape))),
    "noise": (3, lambda shape: (random.random(shape) < random.random(), random.random(shape) < random.random())),
    "identical": (2, lambda shape: (blob(shape),) * 2),
    "full": (2, lambda shape: (blob(shape), np.ones(shape, bool))),
    "prediction empty": (2, lambda shape: (np.zeros(shape, bool), blob(shape))),
    "reference empty": (2, lambda shape: (blob(shape), np.zeros(shape, bool))),
    "both empty": (1, lambda shape: (np.zeros(shape, bool),) * 2),
}


def measure(prediction, reference, spacing):
    """medpy's metrics; accuracy and the undefined ones are not medpy's."""
    overlap = prediction.any() or reference.any()
    distances = prediction.any() and reference.any()
    rvd = binary.ravd(prediction, reference) if reference.any() else None
    return {
        "dice": binary.dc(prediction, reference) if overlap else None,
        "iou": binary.jc(prediction, reference) if overlap else None,
        "accuracy": float(np.mean(prediction == reference)),
        "precision": binary.precision(prediction, reference) if prediction.any() else None,
        "recall": binary.recall(prediction, reference) if reference.any() else None,
        "specificity": binary.specificity(prediction, reference) if not reference.all() else None,
        "rvd": rvd,
        "rvd_absolute": None if rvd is None else abs(rvd),
        "hd": float(binary.hd(prediction, reference, spacing)) if distances else None,
        "hd95": float(binary.hd95(prediction, reference, spacing)) if distances else None,
        "assd": float(binary.assd(prediction, reference, spacing)) if distances else None,
    }


def pair(kind, dimensions, make):
    longest = 40 if dimensions == 2 else 16
    shape = tuple(int(length) for length in random.integers(2, longest + 1, dimensions))
    spacing = [1.0] * dimensions
    if random.random() < 0.75:
        spacing = [round(float(step), 3) for step in random.uniform(0.2, 5.0, dimensions)]
    prediction, reference = make(shape)
    return {
        "kind": kind,
        "shape": [*reversed(shape)] + [1] * (3 - dimensions),
        "spacing": [*reversed(spacing)] + [1.0] * (3 - dimensions),
        "prediction": np.packbits(prediction).tobytes().hex(),
        "reference": np.packbits(reference).tobytes().hex(),
        "metrics": measure(prediction, reference, spacing),
    }


def signed_ranks(count, decimals, shift):
    """Figures of two methods; few decimals make ties and zeros."""
    first = np.round(random.uniform(0.5, 1.0, count), decimals)
    second = np.round(first + random.normal(shift, 0.1, count), decimals)
    # In whole steps, so that equal differences are equal in binary too.
    first, second = (np.round(values * 10**decimals) for values in (first, second))
    kept = first != second
    differing, sizes = int(kept.sum()), np.abs(first - second)[kept]
    if differing > 25:
        result = stats.wilcoxon(first, second, zero_method="wilcox", correction=True, method="asymptotic")
    elif len(np.unique(sizes)) == differing:
        result = stats.wilcoxon(first[kept], second[kept], method="exact")
    else:
        # scipy's exact test knows no ties; a permutation test of all signs does.
        assert differing <= 13
        result = stats.wilcoxon(first[kept], second[kept], method=stats.PermutationMethod(n_resamples=np.inf))
    return {
        "first": first.tolist(),
        "second": second.tolist(),
        "statistic": float(result.statistic),
        "p_value": float(result.pvalue),
        "exact": differing <= 25,
    }


def write(path, entries):
    lines = ",\n".join(json.dumps(entry, separators=(",", ":"), allow_nan=False) for entry in entries)
    with open(path, "w") as file:
        file.write(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    write(
        "pairs.json",
        [
            pair(kind, dimensions, make)
            for dimensions in (2, 3)
            for kind, (count, make) in KINDS.items()
            for _ in range(3 * count)
        ],
    )
    write(
        "wilcoxon.json",
        [
            signed_ranks(*case)
            for case in [
                (1, 6, 0.1), (2, 6, 0.1), (6, 6, 0.3), (8, 2, 0.0), (10, 6, 0.05), (12, 1, 0.1), (13, 1, 0.0),
                (15, 6, 0.0), (20, 6, 0.08), (25, 6, 0.02), (26, 6, 0.02), (40, 6, 0.0), (60, 1, 0.05),
                (100, 2, 0.03), (300, 3, 0.05), (300, 6, 0.3),
            ]
        ],
    )
