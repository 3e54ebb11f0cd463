//! Reorienting to RAS and putting back, for every axis order and for oblique grids.

use rarunet_cuda::data::{Geometry, Reorientation};

use super::volume;

/// The 48 affines whose axes are patient axes, exchanged and turned round.
fn axis_orders() -> Vec<[[f64; 4]; 4]> {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let mut affines = Vec::new();
    for order in orders {
        for signs in 0..8 {
            let mut affine = [[0.0; 4]; 4];
            affine[3][3] = 1.0;
            for axis in 0..3 {
                affine[order[axis]][axis] = if signs >> axis & 1 == 1 { -1.0 } else { 1.0 } * (0.5 + axis as f64);
                affine[axis][3] = 10.0 * axis as f64 - 7.0;
            }
            affines.push(affine);
        }
    }
    affines
}

/// Grids rotated about two axes by the angles in degrees, the second at the edge of a tie.
fn oblique() -> Vec<[[f64; 4]; 4]> {
    [(20.0f64, -35.0f64), (45.0, 0.0), (130.0, 61.0)]
        .into_iter()
        .map(|(a, b)| {
            let ((sa, ca), (sb, cb)) = (a.to_radians().sin_cos(), b.to_radians().sin_cos());
            let rotation = [[ca, -sa * cb, sa * sb], [sa, ca * cb, -ca * sb], [0.0, sb, cb]];
            let mut affine = [[0.0; 4]; 4];
            for row in 0..3 {
                let spacing = [0.7, 0.7, 3.0];
                (0..3).for_each(|axis| affine[row][axis] = rotation[row][axis] * spacing[axis]);
                affine[row][3] = -50.0 + row as f64;
            }
            affine[3][3] = 1.0;
            affine
        })
        .collect()
}

#[test]
fn every_axis_order_goes_to_ras_and_back() {
    let affines = [axis_orders(), oblique()].concat();
    assert_eq!(affines.len(), 51);
    for (number, affine) in affines.into_iter().enumerate() {
        let stored = Geometry { shape: [4, 3, 5], affine };
        let scan = volume(stored.clone(), |x, y, z| (x + 10 * y + 100 * z) as i32);
        let reorientation = Reorientation::to_ras_from(&stored);
        let ras = reorientation.to_ras(&scan).unwrap();

        assert_eq!(ras.geometry.orientation(), "RAS", "affine {number}, stored as {}", stored.orientation());
        if number < 48 {
            // Exactly along the patient's axes: a diagonal of the spacings.
            for row in 0..3 {
                for axis in 0..3 {
                    assert_eq!(ras.geometry.affine[row][axis] != 0.0, row == axis);
                }
                assert!(ras.geometry.affine[row][row] > 0.0);
            }
        }
        // Each voxel has stayed where it was in the patient.
        let [nx, ny, nz] = ras.geometry.shape;
        for z in 0..nz {
            for y in 0..ny {
                for x in 0..nx {
                    let value = ras.voxels[x + nx * (y + ny * z)];
                    let index = [value % 10, value / 10 % 10, value / 100].map(f64::from);
                    let before = stored.position(index);
                    let after = ras.geometry.position([x as f64, y as f64, z as f64]);
                    assert!(before.iter().zip(after).all(|(a, b)| (a - b).abs() < 1e-12), "affine {number}");
                }
            }
        }
        assert_eq!(reorientation.to_stored(&ras).unwrap(), scan, "affine {number}");
    }
}

#[test]
fn orientation_is_named_as_nibabel_names_it() {
    let names: std::collections::BTreeSet<String> =
        axis_orders().into_iter().map(|affine| Geometry { shape: [1, 1, 1], affine }.orientation()).collect();
    assert_eq!(names.len(), 48);
    assert!(names.contains("RAS") && names.contains("LPS") && names.contains("SRA") && names.contains("ILP"));
}

#[test]
fn grids_are_told_apart_with_both_numbers() {
    let one = Geometry::axis_aligned([10, 10, 4], [0.5, 0.5, 3.0]);
    assert_eq!(one.difference(&one.clone(), ["image", "mask"]), None);

    let mut rounded = one.clone();
    rounded.affine[0][3] += 0.04; // less than a tenth of the smallest voxel
    assert_eq!(one.difference(&rounded, ["image", "mask"]), None);

    let mut moved = one.clone();
    moved.affine[2][3] = 3.0;
    let text = one.difference(&moved, ["image", "mask"]).unwrap();
    assert_eq!(
        text,
        "the image and the mask lie up to 3.000 mm apart: affine [0.5 0 0 0; 0 0.5 0 0; 0 0 3 0] against \
         [0.5 0 0 0; 0 0.5 0 0; 0 0 3 3]"
    );

    let other = Geometry::axis_aligned([10, 10, 5], [0.5, 0.5, 3.0]);
    let text = one.difference(&other, ["image", "mask"]).unwrap();
    assert_eq!(text, "the image has 10 x 10 x 4 voxels and the mask 10 x 10 x 5");
}
