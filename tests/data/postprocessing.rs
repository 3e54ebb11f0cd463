//! The largest component and the holes of masks, against a flood fill written here.

use super::volume;
use proptest::prelude::*;
use rarunet_cuda::data::{Geometry, Volume};
use rarunet_cuda::postprocessing::{fill_holes, keep_largest_component};

fn mask(shape: [usize; 3], set: impl Fn(usize, usize, usize) -> bool) -> Volume<u8> {
    volume(Geometry::axis_aligned(shape, [1.0; 3]), |x, y, z| u8::from(set(x, y, z)))
}

#[test]
fn the_largest_component_stays() {
    // Two blocks that touch at a corner, 8 + 1 voxels, against a bar of 8.
    let blocks = |x: usize, y: usize, z: usize| x < 2 && y < 2 && z < 2 || (x, y, z) == (2, 2, 2);
    let bar = |x: usize, y: usize, z: usize| y == 5 && z == 4 && x < 8;
    let mut both = mask([9, 6, 5], |x, y, z| blocks(x, y, z) || bar(x, y, z));
    keep_largest_component(&mut both);
    assert_eq!(both, mask([9, 6, 5], blocks));
    // Of equals the first.
    let mut ends = mask([9, 1, 1], |x, _, _| x != 4);
    keep_largest_component(&mut ends);
    assert_eq!(ends, mask([9, 1, 1], |x, _, _| x < 4));
    let mut empty = mask([3, 3, 3], |_, _, _| false);
    keep_largest_component(&mut empty);
    assert_eq!(empty, mask([3, 3, 3], |_, _, _| false));
}

#[test]
fn only_what_is_enclosed_is_filled() {
    let solid = |x: usize, y: usize, z: usize| [x, y, z].iter().all(|i| (1..6).contains(i));
    let mut hollow = mask([7, 7, 7], |x, y, z| solid(x, y, z) && [x, y, z] != [3, 3, 3]);
    fill_holes(&mut hollow);
    assert_eq!(hollow, mask([7, 7, 7], solid));
    // A canal that runs out at the top is no hole, but in a volume of one slice it is.
    let canal = |x: usize, y: usize, z: usize| solid(x, y, z) && (x, y) != (3, 3);
    let mut open = mask([7, 7, 7], canal);
    fill_holes(&mut open);
    assert_eq!(open, mask([7, 7, 7], canal));
    let mut slice = mask([7, 7, 1], |x, y, _| canal(x, y, 1));
    fill_holes(&mut slice);
    assert_eq!(slice, mask([7, 7, 1], |x, y, _| solid(x, y, 1)));
    // A leak over an edge is none over a face.
    let mut diagonal =
        mask([4, 4, 1], |x, y, _| [(1, 0), (2, 0), (0, 1), (3, 1), (0, 2), (3, 2), (2, 3)].contains(&(x, y)));
    fill_holes(&mut diagonal);
    assert_eq!(diagonal.voxels[5], 0, "(1, 3) is open");
}

/// The component of each voxel that is `wanted`, by flood fill; 0 elsewhere.
fn components(mask: &Volume<u8>, wanted: u8, diagonally: bool) -> Vec<usize> {
    let [width, height, depth] = mask.geometry.shape;
    let mut of = vec![0; mask.voxels.len()];
    let mut count = 0;
    for start in 0..of.len() {
        if mask.voxels[start] != wanted || of[start] != 0 {
            continue;
        }
        count += 1;
        let mut todo = vec![start];
        of[start] = count;
        while let Some(at) = todo.pop() {
            let place = [at % width, at / width % height, at / width / height];
            for step in 0..27usize {
                let step = [step % 3, step / 3 % 3, step / 9];
                if !diagonally && step.iter().filter(|&&s| s != 1).count() > 1 {
                    continue;
                }
                let next: Vec<usize> = (0..3).map(|axis| (place[axis] + step[axis]).wrapping_sub(1)).collect();
                if next.iter().zip([width, height, depth]).any(|(&n, size)| n >= size) {
                    continue;
                }
                let next = (next[2] * height + next[1]) * width + next[0];
                if mask.voxels[next] == wanted && of[next] == 0 {
                    of[next] = count;
                    todo.push(next);
                }
            }
        }
    }
    of
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn as_a_flood_fill_finds_them(width in 1usize..9, height in 1usize..7, depth in 1usize..6, seed: u64, share in 1u64..10) {
        let shape = [width, height, depth];
        let random = |x: usize, y: usize, z: usize| {
            let mut n = seed ^ ((z * 64 + y * 8 + x) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            n ^= n >> 29;
            n.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40
        };
        let before = mask(shape, |x, y, z| random(x, y, z) % 10 < share);

        let of = components(&before, 1, true);
        let sizes: Vec<usize> = (0..=of.iter().copied().max().unwrap_or(0)).map(|c| of.iter().filter(|&&o| o == c).count()).collect();
        let largest = (1..sizes.len()).rev().max_by_key(|&component| sizes[component]);
        let mut kept = before.clone();
        keep_largest_component(&mut kept);
        let expected: Vec<u8> = of.iter().map(|&component| u8::from(Some(component) == largest)).collect();
        prop_assert_eq!(kept.voxels, expected);

        let of = components(&before, 0, false);
        let at_end = |place: usize, size: usize| size > 1 && (place == 0 || place == size - 1);
        let is_border = |at: usize| at_end(at % width, width) || at_end(at / width % height, height) || at_end(at / width / height, depth);
        let open: Vec<usize> = (0..of.len()).filter(|&at| is_border(at)).map(|at| of[at]).collect();
        let mut filled = before.clone();
        fill_holes(&mut filled);
        let expected: Vec<u8> = of.iter().map(|component| u8::from(*component == 0 || !open.contains(component))).collect();
        prop_assert_eq!(filled.voxels, expected);
    }
}
