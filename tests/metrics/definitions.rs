//! Boundary overlap, distances and undefined values against their definitions.

use rarunet_cuda::metrics::boundary::BoundaryOverlap;
use rarunet_cuda::metrics::distance::distances;
use rarunet_cuda::metrics::pair::MaskPair;
use rarunet_cuda::metrics::{Counts, Metric, evaluate_case, evaluate_slices, evaluate_volume};

use super::{Pair, assert_close};

/// A mask that can be asked about any position, also outside.
struct Grid<'a> {
    mask: &'a [bool],
    shape: [usize; 3],
}

impl Grid<'_> {
    fn voxels(&self) -> impl Iterator<Item = [i64; 3]> {
        let [x, y, z] = self.shape.map(|length| length as i64);
        (0..z).flat_map(move |z| (0..y).flat_map(move |y| (0..x).map(move |x| [x, y, z])))
    }

    fn has(&self, at: [i64; 3]) -> bool {
        let inside = (0..3).all(|axis| (0..self.shape[axis] as i64).contains(&at[axis]));
        let [x, y, z] = at.map(|position| position as usize);
        inside && self.mask[(z * self.shape[1] + y) * self.shape[0] + x]
    }

    fn boundary(&self) -> Vec<[i64; 3]> {
        let axes = if self.shape[2] == 1 { 2 } else { 3 };
        let beside = |at: [i64; 3]| {
            (0..axes).flat_map(move |axis| {
                [-1, 1].map(|step| std::array::from_fn(|i| if i == axis { at[i] + step } else { at[i] }))
            })
        };
        self.voxels().filter(|&at| self.has(at) && beside(at).any(|neighbour| !self.has(neighbour))).collect()
    }
}

/// DBD_G, DBD_M and SBD straight from equations 6 and 7.
fn boundary_overlap(prediction: &[bool], reference: &[bool], shape: [usize; 3], radius: i64) -> [Option<f64>; 3] {
    let (m, g) = (Grid { mask: prediction, shape }, Grid { mask: reference, shape });
    let dice = |x: &[i64; 3]| {
        let near = |y: &[i64; 3]| (0..3).map(|axis| (x[axis] - y[axis]).abs()).sum::<i64>() <= radius;
        let neighbourhood: Vec<_> = g.voxels().filter(near).collect();
        let count = |inside: &dyn Fn([i64; 3]) -> bool| neighbourhood.iter().filter(|&&y| inside(y)).count() as f64;
        2.0 * count(&|y| g.has(y) && m.has(y)) / (count(&|y| g.has(y)) + count(&|y| m.has(y)))
    };
    let over = |boundary: &[[i64; 3]]| (boundary.iter().map(dice).sum::<f64>(), boundary.len() as f64);
    let ((sum_g, count_g), (sum_m, count_m)) = (over(&g.boundary()), over(&m.boundary()));
    let ratio = |sum: f64, count: f64| (count > 0.0).then(|| sum / count);
    [ratio(sum_g, count_g), ratio(sum_m, count_m), ratio(sum_g + sum_m, count_g + count_m)]
}

#[test]
fn boundary_overlap_follows_equations_6_and_7() {
    for (index, pair) in Pair::all().iter().enumerate() {
        let (prediction, reference) = pair.masks();
        let radius = index % 4;
        let measured = BoundaryOverlap::of(&MaskPair::new(&prediction, &reference, pair.shape), radius);
        let [dbd_g, dbd_m, sbd] = boundary_overlap(&prediction, &reference, pair.shape, radius as i64);
        assert_close(measured.dbd_g, dbd_g, "dbd_g");
        assert_close(measured.dbd_m, dbd_m, "dbd_m");
        assert_close(measured.sbd, sbd, "sbd");
        if radius == 1 {
            assert_close(pair.evaluate().sbd, sbd, "sbd of evaluate_volume");
        }
    }
}

#[test]
fn boundary_overlap_by_hand() {
    // Reference x = 0, 1; prediction x = 1, 2 of one row of four pixels.
    let (reference, prediction) = ([true, true, false, false], [false, true, true, false]);
    let of = |radius| BoundaryOverlap::of(&MaskPair::new(&prediction, &reference, [4, 1, 1]), radius);
    // Around 0: 2 * 1 / (2 + 1). Around 1: 2 * 1 / (2 + 2). Around 2: 2 * 1 / (1 + 2).
    let directed = Some((2.0 / 3.0 + 0.5) / 2.0);
    assert_close(of(1).dbd_g, directed, "dbd_g");
    assert_close(of(1).dbd_m, directed, "dbd_m");
    assert_close(of(1).sbd, directed, "sbd");
    // A neighbourhood of everything gives the Dice.
    assert_close(of(usize::MAX).sbd, Some(0.5), "sbd");
}

#[test]
fn distances_are_the_smallest_of_all() {
    for pair in Pair::all() {
        let [columns, rows, slices] = pair.shape;
        let (sites, queries) = pair.masks();
        let flags: Vec<u8> =
            sites.iter().zip(&queries).map(|(&site, &query)| u8::from(site) | (u8::from(query) << 1)).collect();
        let sites = Grid { mask: &sites, shape: pair.shape };
        let sites: Vec<_> = sites.voxels().filter(|&at| sites.has(at)).collect();
        let queries = Grid { mask: &queries, shape: pair.shape };
        let mut expected = Vec::new();
        for (z, x, y) in (0..slices).flat_map(|z| (0..columns).flat_map(move |x| (0..rows).map(move |y| (z, x, y)))) {
            let at = [x, y, z].map(|position| position as i64);
            if queries.has(at) {
                let to = |site: &[i64; 3]| {
                    (0..3).map(|axis| ((at[axis] - site[axis]) as f64 * pair.spacing[axis]).powi(2)).sum::<f64>()
                };
                expected.push(sites.iter().map(to).fold(f64::INFINITY, f64::min).sqrt());
            }
        }
        let measured = distances(&flags, pair.shape, pair.spacing, 1, 2);
        assert_eq!(measured.len(), expected.len());
        for (measured, expected) in measured.iter().zip(&expected) {
            assert!(measured == expected || (measured - expected).abs() < 1e-9, "{measured}, expected {expected}");
        }
    }
}

#[test]
fn undefined_values_have_reasons() {
    let (none, some, all) = ([false; 4], [true, false, false, false], [true; 4]);
    let measure = |prediction: &[bool], reference: &[bool]| {
        evaluate_volume(prediction, reference, [2, 2, 1], [1.0; 3], 1).unwrap()
    };

    let both = measure(&none, &none);
    let undefined = Metric::Undefined("both masks are empty");
    for (value, name) in both.values().into_iter().zip(rarunet_cuda::metrics::Metrics::NAMES) {
        let expected = if name == "accuracy" || name == "specificity" { Metric::Value(1.0) } else { undefined };
        assert_eq!(value, expected, "{name}");
    }

    let missed = measure(&none, &some);
    let undefined = Metric::Undefined("the prediction is empty");
    assert_eq!([missed.dice, missed.iou, missed.recall], [Metric::Value(0.0); 3]);
    assert_eq!([missed.rvd, missed.rvd_absolute], [Metric::Value(-1.0), Metric::Value(1.0)]);
    assert_eq!([missed.precision, missed.hd, missed.hd95, missed.assd, missed.dbd_m], [undefined; 5]);
    assert_eq!([missed.dbd_g, missed.sbd], [Metric::Value(0.0); 2]);

    let invented = measure(&some, &none);
    let undefined = Metric::Undefined("the reference is empty");
    assert_eq!([invented.dice, invented.iou, invented.precision], [Metric::Value(0.0); 3]);
    assert_eq!([invented.recall, invented.rvd, invented.rvd_absolute, invented.hd, invented.dbd_g], [undefined; 5]);
    assert_eq!([invented.dbd_m, invented.sbd], [Metric::Value(0.0); 2]);

    assert_eq!(measure(&some, &all).specificity, Metric::Undefined("the reference has no background"));
    assert_eq!(Counts::default().accuracy(), Metric::Undefined("the masks have no voxels"));
}

#[test]
fn counts_of_several_masks_add_up() {
    // More voxels than are counted at a time.
    let prediction: Vec<bool> = (0..200_000).map(|voxel| voxel % 3 == 0).collect();
    let reference: Vec<bool> = (0..200_000).map(|voxel| voxel % 2 == 0).collect();
    let whole = Counts::of(&prediction, &reference).unwrap();
    let expected =
        Counts { true_positives: 33_334, false_positives: 33_333, false_negatives: 66_666, true_negatives: 66_667 };
    assert_eq!(whole, expected);
    let parts = prediction.chunks(70_001).zip(reference.chunks(70_001));
    assert_eq!(parts.map(|(prediction, reference)| Counts::of(prediction, reference).unwrap()).sum::<Counts>(), whole);
    assert_close(whole.dice(), Some(2.0 * 33_334.0 / (66_667.0 + 100_000.0)), "dice");
    assert_close(whole.iou(), Some(33_334.0 / 133_333.0), "iou");
}

#[test]
fn masks_that_do_not_fit_are_errors() {
    let message = |result: rarunet_cuda::Result<_>| match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    let case = |prediction, reference, shape, spacing: f64| {
        message(
            evaluate_case(&vec![true; prediction], &vec![true; reference], shape, [1.0, spacing, 1.0], 1).map(|_| ()),
        )
    };
    assert!(case(6, 8, [2, 2, 2], 1.0).contains("prediction of 6 voxels and a reference of 8 on a grid of 2 x 2 x 2"));
    assert!(case(8, 8, [2, 2, 3], 1.0).contains("2 x 2 x 3"));
    assert!(case(0, 0, [0, 2, 2], 1.0).contains("0 x 2 x 2"));
    assert!(case(0, 0, [usize::MAX, 2, 2], 1.0).contains("give two masks on one grid"));
    for spacing in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e200] {
        assert!(case(8, 8, [2, 2, 2], spacing).contains("spacing"), "{spacing}");
    }
    assert!(message(evaluate_slices(&[true; 8], &[true; 8], [0, 2, 2], 1).map(|_| ())).contains("0 x 2 x 2"));
    assert!(message(Counts::of(&[true; 8], &[true; 9]).map(|_| ())).contains("8 voxels, the reference 9"));
}
